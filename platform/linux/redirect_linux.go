package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The redirect takes the TCP connections of this machine that would enter the
// TUN to a listener on loopback. It is a chain in our table:
//
//	chain loopback {         nat, output, after everybody else's
//	  oifname TUN  tcp syn  tcp dport != …  ipv4              ct timeout set brief  dnat to 127.0.0.1-127.255.255.254:PORT
//	  oifname TUN  tcp syn  tcp dport != …  ip6 daddr PREFIX  redirect to :PORT
//	}
//
// An app uses one source port towards many targets. Here they would all be one
// pair of addresses, and a SYN that meets the TIME_WAIT of another target's
// connection may be refused and cost a second. So IPv4 targets are spread over
// the loopback network: the kernel chooses the address by a hash of source and
// target. IPv6 has one loopback address; there conntrack keeps its own timeouts,
// which are longer than TIME_WAIT, and gives a second connection another port.
//
// Only the SYN decides: a connection that began before keeps the way it has, and
// so does a redirected one after the rules are gone, as conntrack remembers it.
// That needs the chain, although empty, and the other chains' ct expressions:
// with the last nat chain, or the last user of conntrack, the kernel stops
// translating what is open. So the chain stays as long as the table.
//
// Forwarded traffic does not pass the output hook. A priority behind everybody
// else's leaves foreign translations (Docker, kube-proxy) as they are.

const (
	redirectChain    = "loopback" // "redirect" is a keyword of nft
	redirectPriority = nftables.ChainPriority(-90)
	tcpDport         = 2 // offset in the TCP header
)

// addRedirect loads the chain and its rules in one transaction; rules that are
// there are replaced. A kernel without timeout policies gets the rules without.
func addRedirect(o op) error {
	err := loadRedirect(o, true)
	if err != nil {
		err = loadRedirect(o, false)
	}
	return err
}

func loadRedirect(o op, timeouts bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
	chain := c.AddChain(&nftables.Chain{
		Name: redirectChain, Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(redirectPriority),
	})
	c.FlushChain(chain)
	rule := func(parts ...[]expr.Any) {
		match := slices.Concat(outInterface(o.Dev), tcp(expr.CmpOpEq), tcpIsSyn(), portsOtherThan(o.Except))
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(match, slices.Concat(parts...)...)})
	}
	var soon []expr.Any
	if timeouts {
		soon = forgetSoon(c, table)
	}
	rule(ofFamily(unix.NFPROTO_IPV4), soon, toLoopback4(o.Dport))
	if o.To.IsValid() {
		rule(ofFamily(unix.NFPROTO_IPV6), towards6(o.To), toLoopback6(o.Dport))
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("load the nft redirect: %w", err)
	}
	return nil
}

// emptyChain takes the rules out of a chain of our table; see above why the
// redirect's stays.
func emptyChain(name string) error {
	rules, err := chainRules(name)
	if err != nil || rules == 0 {
		return nil // no nftables, no table, no chain: no rules
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.FlushChain(&nftables.Chain{Name: name, Table: &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("empty the nft chain %s: %w", name, err)
	}
	return nil
}

// chainRules is how many rules a chain of our table has.
func chainRules(name string) (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
	rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return len(rules), err
}

func chainPresent(name string) (bool, error) {
	n, err := chainRules(name)
	return n > 0, err
}

func outInterface(name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, compare(expr.CmpOpEq, data)}
}

func ofFamily(family byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, compare(expr.CmpOpEq, []byte{family})}
}

func toLoopback4(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG32_00, Data: []byte{127, 0, 0, 1}},
		&expr.Immediate{Register: unix.NFT_REG32_01, Data: []byte{127, 255, 255, 254}},
		&expr.Immediate{Register: unix.NFT_REG32_02, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, Specified: true,
			RegAddrMin: unix.NFT_REG32_00, RegAddrMax: unix.NFT_REG32_01, RegProtoMin: unix.NFT_REG32_02,
		},
	}
}

func toLoopback6(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: reg},
	}
}

func portsOtherThan(ports []uint16) []expr.Any {
	if len(ports) == 0 {
		return nil
	}
	all := []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: tcpDport, Len: 2}}
	for _, p := range ports {
		all = append(all, compare(expr.CmpOpNeq, binaryutil.BigEndian.PutUint16(p)))
	}
	return all
}

// towards6 matches IPv6 destinations in p, whose length is a multiple of 8.
func towards6(p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().As16()
	n := p.Bits() / 8
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: uint32(n)},
		compare(expr.CmpOpEq, addr[:n]),
	}
}
