package linux

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Who may come in. In our table:
//
//	chain prerouting {       see firewall_linux.go
//	  iifname != lo ip daddr TUN4     drop      and the same for IPv6
//	}
//	chain forward {          filter, forward
//	  iifname UPLINK oifname TUN      reject    one for each uplink
//	}
//
// and, as a machine answers ARP for all its addresses on every link,
//
//	table arp atlantic { chain input { arp daddr ip TUN4 drop } }
//
// The TUN's address is for this machine alone. Whoever on the LAN could reach it
// would learn that it is there, and could feel for the connections that it has
// (CVE-2019-14899): what comes from elsewhere is dropped, answers to us included,
// since by the TUN itself it has passed before that rule.
//
// A machine that forwards packets would carry its neighbours through the
// upstream. Those of an uplink are refused; containers and virtual machines come
// by other interfaces and are carried.

const (
	gateChain  = "forward"
	arpDstAddr = 24 // offset of the target's address in an ARP packet for IPv4 over Ethernet
)

// addGate loads the rules; those that are there are replaced. A kernel that cannot
// reject drops.
func addGate(o op) error {
	err := loadGate(o, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
	if err != nil {
		err = loadGate(o, &expr.Verdict{Kind: expr.VerdictDrop})
	}
	return err
}

func loadGate(o op, refuse expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
	chain := c.AddChain(&nftables.Chain{
		Name: gateChain, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	c.FlushChain(chain)
	for _, name := range o.Uplinks {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(
			interfaceName(expr.CmpOpEq, name), outInterface(o.Dev), []expr.Any{refuse})})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("load the nft chain %s: %w", gateChain, err)
	}
	return nil
}

// hide adds the rules that keep a TUN address from everybody else: dropping what
// came in by another interface than the TUN (whose packets have left the chain
// before), and, with arp, not answering for it.
func hide(c *nftables.Conn, pre *nftables.Chain, addrs []netip.Addr, arp bool) {
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	for _, a := range addrs {
		c.AddRule(&nftables.Rule{Table: pre.Table, Chain: pre, Exprs: slices.Concat(
			interfaceName(expr.CmpOpNeq, "lo"), toAddress(a), []expr.Any{drop})})
		if !arp || !a.Is4() {
			continue
		}
		table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyARP}
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		in := c.AddChain(&nftables.Chain{
			Name: "input", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookRef(0), Priority: nftables.ChainPriorityFilter, // NF_ARP_IN
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: []expr.Any{
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: arpDstAddr, Len: 4},
			compare(expr.CmpOpEq, a.AsSlice()), drop,
		}})
	}
}

// toAddress matches packets to one address.
func toAddress(a netip.Addr) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	return append(ofFamily(family),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		compare(expr.CmpOpEq, a.AsSlice()))
}
