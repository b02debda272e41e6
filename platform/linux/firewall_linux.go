package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The nft table keeps connections on the interface they came by:
//
//	table inet atlantic {
//	  ct timeout brief         see conntrack_linux.go
//	  set inbound4, inbound6   laddr . lport . raddr . rport
//	  chain prerouting {       filter, mangle
//	    iifname TUN ct state new           ct timeout set brief
//	    iifname TUN                        return
//	    to the TUN's address               drop, but by lo: see gate_linux.go
//	    iifname != lo ct state new ct direction original fib daddr type local
//	        (not tcp, or tcp syn)          ct mark set our mark
//	    in inbound4 or inbound6            ct mark set our mark
//	    ct mark ours                       meta mark set our mark
//	  }
//	  chain output {           route, mangle
//	    oifname TUN ct state new           ct timeout set brief
//	    meta mark ours ct state new        ct timeout set brief
//	    meta mark ours                     ct mark set our mark
//	    in inbound4 or inbound6            ct mark set our mark
//	    ct mark ours                       meta mark set our mark
//	  }
//	}
//
// The last rule of prerouting lets strict reverse-path checks see the mark, and
// sends the replies of containers with published ports where they came from.
// Only the bits of markMask are written. Most packets meet the cheap half: what
// comes by the TUN is done at once, ct state is asked before the routing table,
// and the rules of an empty set are left out.

const (
	maxInbound   = 8192 // connections from before `up` that are kept, per family
	nftChunk     = 256  // set elements in one transaction, which has to fit in a socket buffer
	nfNew        = expr.CtStateBitNEW
	dirOriginal  = 0
	tcpSynMask   = 0x17 // fin, syn, rst, ack
	tcpSyn       = 0x02
	tcpFlagsByte = 13
	reg          = 1
)

// errNFT is a kernel that has nftables and refuses our table.
var errNFT = errors.New("cannot load the nft table")

// hasNFT reports whether nftables answers.
func hasNFT() bool {
	c, err := nftables.New()
	if err != nil {
		return false
	}
	_, err = c.ListTablesOfFamily(nftables.TableFamilyINet)
	return err == nil
}

// nftTables are our tables, by family.
func nftTables() (own []*nftables.Table, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP} {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return nil, err
		}
		for _, t := range tables {
			if t.Name == nftTable {
				own = append(own, t)
			}
		}
	}
	return own, nil
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyARP {
		return "arp"
	}
	return "inet"
}

// nftPresent reports whether both tables are there; without ARP in this kernel's
// nftables it is one.
func (h *Host) nftPresent() (bool, error) {
	own, err := nftTables()
	return len(own) == 2 || len(own) == 1 && h.system.noARP, err
}

// addNFT makes the tables, with timeouts of our own and the one for ARP where the
// kernel has them.
func (h *Host) addNFT(o op) error {
	var err error
	for _, arp := range []bool{true, false} {
		for _, timeouts := range []bool{true, false} {
			if err = loadNFT(o, timeouts, arp); !errors.Is(err, errNFT) {
				h.system.noARP = !arp
				return err
			}
		}
	}
	return err
}

// loadNFT makes the tables in one transaction, with the first connections of the
// sets; more of them follow. Tables of that name are replaced.
func loadNFT(o op, timeouts, arp bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	inbound := inboundConnections(o.Dev)
	set4, more4, err := addInboundSet(c, table, "inbound4", nftables.TypeIPAddr, inbound, netip.Addr.Is4)
	if err != nil {
		return err
	}
	set6, more6, err := addInboundSet(c, table, "inbound6", nftables.TypeIP6Addr, inbound, netip.Addr.Is6)
	if err != nil {
		return err
	}
	any4 := slices.ContainsFunc(inbound, func(c connection) bool { return c.local.Addr().Is4() })
	any6 := slices.ContainsFunc(inbound, func(c connection) bool { return c.local.Addr().Is6() })
	pre := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	})
	out := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeRoute,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityMangle,
	})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	begins := slices.Concat(interfaceName(expr.CmpOpNeq, "lo"), beginsConnection(), toThisMachine())
	if timeouts {
		soon := forgetSoon(c, table)
		rule(pre, interfaceName(expr.CmpOpEq, o.Dev), isNew(), soon)
		rule(out, outInterface(o.Dev), isNew(), soon)
		rule(out, metaMarkIsOurs(), isNew(), soon)
	}
	rule(pre, interfaceName(expr.CmpOpEq, o.Dev), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
	hide(c, pre, o.Addrs, arp)
	rule(pre, begins, tcp(expr.CmpOpNeq), setCtMark())
	rule(pre, begins, tcp(expr.CmpOpEq), tcpIsSyn(), setCtMark())
	rule(out, metaMarkIsOurs(), setCtMark())
	if any4 {
		rule(pre, inSet(set4, unix.NFPROTO_IPV4, true), setCtMark())
		rule(out, inSet(set4, unix.NFPROTO_IPV4, false), setCtMark())
	}
	if any6 {
		rule(pre, inSet(set6, unix.NFPROTO_IPV6, true), setCtMark())
		rule(out, inSet(set6, unix.NFPROTO_IPV6, false), setCtMark())
	}
	rule(pre, ctMarkIsOurs(), setMetaMark())
	rule(out, ctMarkIsOurs(), setMetaMark())
	if err := c.Flush(); err != nil {
		return fmt.Errorf("%w: %w", errNFT, err)
	}
	return errors.Join(fillSet(c, set4, more4), fillSet(c, set6, more6))
}

// fillSet adds elements to a set that is loaded.
func fillSet(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for chunk := range slices.Chunk(elements, nftChunk) {
		if err := c.SetAddElements(set, chunk); err != nil {
			return fmt.Errorf("fill set %s: %w", set.Name, err)
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("fill set %s: %w", set.Name, err)
		}
	}
	return nil
}

func deleteNFT() error {
	own, err := nftTables()
	if err != nil || len(own) == 0 {
		return nil // no nftables, no tables
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, t := range own {
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete the nft tables: %w", err)
	}
	return nil
}

// addInboundSet adds a set of "laddr . lport . raddr . rport" with the first
// connections of one family, and returns the elements that did not fit.
func addInboundSet(c *nftables.Conn, table *nftables.Table, name string, addr nftables.SetDatatype, conns []connection, family func(netip.Addr) bool) (*nftables.Set, []nftables.SetElement, error) {
	key, err := nftables.ConcatSetType(addr, nftables.TypeInetService, addr, nftables.TypeInetService)
	if err != nil {
		return nil, nil, fmt.Errorf("make the key of set %s: %w", name, err)
	}
	var elements []nftables.SetElement
	for _, conn := range conns {
		if family(conn.local.Addr()) && len(elements) < maxInbound {
			elements = append(elements, nftables.SetElement{Key: conn.key()})
		}
	}
	first := min(len(elements), nftChunk)
	set := &nftables.Set{Table: table, Name: name, KeyType: key, Concatenation: true}
	if err := c.AddSet(set, elements[:first]); err != nil {
		return nil, nil, fmt.Errorf("add set %s: %w", name, err)
	}
	return set, elements[first:], nil
}

// connection is an established TCP connection that somebody opened to us.
type connection struct{ local, remote netip.AddrPort }

func (c connection) key() []byte {
	var b []byte
	for _, ap := range []netip.AddrPort{c.local, c.remote} {
		b = append(b, ap.Addr().AsSlice()...)
		b = append(b, byte(ap.Port()>>8), byte(ap.Port()), 0, 0) // fields are padded to 4 bytes
	}
	return b
}

// inboundConnections lists the TCP connections whose local port has a listener:
// the passive ends. Conntrack may see them for the first time in the middle and
// would not know who began. Those of the TUN itself are not meant.
func inboundConnections(tun string) []connection {
	own := addressesOf(tun)
	var all []*netlink.Socket
	for _, family := range families() {
		sockets, err := netlink.SocketDiagTCP(uint8(family))
		if err == nil || errors.Is(err, netlink.ErrDumpInterrupted) {
			all = append(all, sockets...)
		}
	}
	listening := make(map[uint16]bool)
	for _, s := range all {
		if s.State == netlink.TCP_LISTEN {
			listening[s.ID.SourcePort] = true
		}
	}
	var conns []connection
	seen := make(map[connection]bool)
	for _, s := range all {
		if s.State == netlink.TCP_LISTEN || !listening[s.ID.SourcePort] {
			continue
		}
		local, ok1 := netip.AddrFromSlice(s.ID.Source)
		remote, ok2 := netip.AddrFromSlice(s.ID.Destination)
		c := connection{
			netip.AddrPortFrom(local.Unmap(), s.ID.SourcePort),
			netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort),
		}
		if ok1 && ok2 && !local.Unmap().IsLoopback() && !slices.Contains(own, local.Unmap()) && !seen[c] {
			seen[c] = true
			conns = append(conns, c)
		}
	}
	return conns
}

// addressesOf are the addresses of a device, none if it is not there.
func addressesOf(device string) []netip.Addr {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil
	}
	list, _ := netlink.AddrList(link, netlink.FAMILY_ALL)
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// listeningPorts are the TCP ports that others can reach.
func listeningPorts() []uint16 {
	var ports []uint16
	for _, family := range families() {
		sockets, _ := netlink.SocketDiagTCP(uint8(family))
		for _, s := range sockets {
			if s.State == netlink.TCP_LISTEN && !s.ID.Source.IsLoopback() {
				ports = append(ports, s.ID.SourcePort)
			}
		}
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	return ports[:min(len(ports), maxListening)]
}

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func compare(operation expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: operation, Register: reg, Data: data}
}

func masked(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native32(mask), Xor: native32(xor)}
}

func interfaceName(operation expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg}, compare(operation, data)}
}

func toThisMachine() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, native32(unix.RTN_LOCAL)),
	}
}

func beginsConnection() []expr.Any {
	return append(isNew(),
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
		compare(expr.CmpOpEq, []byte{dirOriginal}))
}

func tcp(operation expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, compare(operation, []byte{unix.IPPROTO_TCP})}
}

func tcpIsSyn() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsByte, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{tcpSynMask}, Xor: []byte{0}},
		compare(expr.CmpOpEq, []byte{tcpSyn}),
	}
}

func ctMarkIsOurs() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		masked(markMask, 0), compare(expr.CmpOpEq, native32(mark)),
	}
}

func metaMarkIsOurs() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		masked(markMask, 0), compare(expr.CmpOpEq, native32(mark)),
	}
}

func setCtMark() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg},
		masked(^markMask, mark),
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}
}

func setMetaMark() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg},
		masked(^markMask, mark),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true},
	}
}

// inSet matches a TCP packet of a connection in set, going out or coming in.
// The fields lie next to each other in the 32-bit registers.
func inSet(set *nftables.Set, family byte, incoming bool) []expr.Any {
	local, remote, length := uint32(12), uint32(16), uint32(4) // source and destination in the IP header
	if family == unix.NFPROTO_IPV6 {
		local, remote, length = 8, 24, 16
	}
	localPort, remotePort := uint32(0), uint32(2)
	if incoming {
		local, remote, localPort, remotePort = remote, local, remotePort, localPort
	}
	words := length / 4
	first := uint32(unix.NFT_REG32_00)
	load := func(base expr.PayloadBase, offset, length, register uint32) expr.Any {
		return &expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: register}
	}
	return slices.Concat(
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, compare(expr.CmpOpEq, []byte{family})},
		tcp(expr.CmpOpEq),
		[]expr.Any{
			load(expr.PayloadBaseNetworkHeader, local, length, first),
			load(expr.PayloadBaseTransportHeader, localPort, 2, first+words),
			load(expr.PayloadBaseNetworkHeader, remote, length, first+words+1),
			load(expr.PayloadBaseTransportHeader, remotePort, 2, first+2*words+1),
			&expr.Lookup{SourceRegister: first, SetName: set.Name, SetID: set.ID},
		},
	)
}
