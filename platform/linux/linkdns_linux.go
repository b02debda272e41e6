package linux

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A query to a link-local resolver (fe80::1%eth0, as routers announce them) names
// its interface, so no route of ours gets it, and its answer has to come by that
// interface. So it is taken to the link's own address, where the packets of this
// machine come back by the same interface:
//
//	chain linkdns {          nat, output
//	  mark not ours  oifname LINK  ip6 daddr fe80::/10  udp and tcp dport 53  dnat to [ADDRESS OF LINK]:PORT
//	}
//	chain linkdns-in {       nat, prerouting
//	  iifname != lo  udp and tcp dport PORT  drop
//	}
//
// Only the first packet of a connection meets them. (Linux 6.18, 27 November
// 2026: with ::1 or the TUN's address as the target no answer arrives.)

const (
	linkDNSChain   = "linkdns"
	linkDNSInChain = "linkdns-in"
)

// link is an interface with an address of its own for IPv6 neighbours.
type link struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
}

// linkLocals are the links by which a link-local resolver may be asked.
func linkLocals(tun string) ([]link, error) {
	names, err := interfaces(tun)
	if err != nil || !hasIPv6() {
		return nil, err
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return nil, err
	}
	var links []link
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		name := names[a.LinkIndex]
		known := slices.ContainsFunc(links, func(l link) bool { return l.Name == name })
		if ok && name != "" && !known && addr.IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			links = append(links, link{name, addr})
		}
	}
	slices.SortFunc(links, func(a, b link) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return links, nil
}

// TakesLinkDNS implements platform.LinkDNSTaker.
func (h *Host) TakesLinkDNS() bool { return h.privileged && !h.system.noNFT && hasNFT() && hasIPv6() }

// addLinkDNS loads the chains. Where the kernel's nftables cannot translate, those
// queries leave, and notice says so.
func (h *Host) addLinkDNS(o op) error {
	err := loadLinkDNS(o)
	if err != nil {
		h.log.Warn("queries to link-local resolvers cannot be taken", "error", err)
		h.system.noLinkDNS = true
	}
	return nil
}

func loadLinkDNS(o op) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
	chain := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		ch := c.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: hook, Priority: nftables.ChainPriorityRef(priority),
		})
		c.FlushChain(ch)
		return ch
	}
	out := chain(linkDNSChain, nftables.ChainHookOutput, redirectPriority)
	in := chain(linkDNSInChain, nftables.ChainHookPrerouting, redirectPriority)
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: slices.Concat(parts...)})
	}
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		for _, l := range o.Links {
			rule(out, metaMarkIsNotOurs(), outInterface(l.Name), towardsLinkLocal(), toPort(proto, 53), toAddress6(l.Addr, o.Dport))
		}
		rule(in, interfaceName(expr.CmpOpNeq, "lo"), toPort(proto, o.Dport), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("load the nft chain %s: %w", linkDNSChain, err)
	}
	return nil
}

func metaMarkIsNotOurs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		masked(markMask, 0), compare(expr.CmpOpNeq, native32(mark)),
	}
}

// towardsLinkLocal matches destinations in fe80::/10.
func towardsLinkLocal() []expr.Any {
	return append(ofFamily(unix.NFPROTO_IPV6),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 2},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: []byte{0xff, 0xc0}, Xor: []byte{0, 0}},
		compare(expr.CmpOpEq, []byte{0xfe, 0x80}))
}

func toPort(proto byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, compare(expr.CmpOpEq, []byte{proto}),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: tcpDport, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)),
	}
}

// toAddress6 translates to an address, which fills four registers of 32 bits, and
// a port.
func toAddress6(a netip.Addr, port uint16) []expr.Any {
	const portReg = unix.NFT_REG32_04
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG32_00, Data: a.AsSlice()},
		&expr.Immediate{Register: portReg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV6, Specified: true,
			RegAddrMin: unix.NFT_REG32_00, RegProtoMin: portReg,
		},
	}
}
