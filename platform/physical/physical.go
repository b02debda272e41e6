// Package physical is the network that a machine has without us, as a value,
// and the pure questions that every Host asks of it.
//
//	interfaces, default routes ──► Network ──Change──► platform.NetChange
//	 (each Host looks by itself)      │
//	                                  └─────Via──────► by which interface a socket of ours leaves
//
// Beside it stands what two Hosts would otherwise write twice: which subnets
// count as the LAN, the halves of a network, the difference between what is
// there and what is wanted. platform/linux, darwin and windows import it.
package physical

import (
	"net/netip"
	"slices"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Link is one physical interface that is up.
type Link struct {
	Name  string
	Index int
	Addrs []netip.Prefix // its addresses, each with its on-link prefix
}

// Network is the physical network: every link, and the indexes of those that
// the default routes use (0: none).
type Network struct {
	Links              []Link
	Default4, Default6 int
}

// Change tells the engine about n; dns are the machine's own resolvers.
func (n Network) Change(dns []netip.Addr) platform.NetChange {
	c := platform.NetChange{
		Up:   n.Default4 != 0 || n.Default6 != 0,
		Has4: n.Default4 != 0, Has6: n.Default6 != 0,
		DNS: dns, LAN: n.LAN(), Self: n.self(),
	}
	index := n.Default4
	if index == 0 {
		index = n.Default6
	}
	for _, l := range n.Links {
		if c.Up && l.Index == index {
			c.Interface = l.Name
		}
	}
	return c
}

// self are the addresses of the links, sorted, each once.
func (n Network) self() (addrs []netip.Addr) {
	for _, l := range n.Links {
		for _, p := range l.Addrs {
			addrs = append(addrs, p.Addr())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// LAN returns the attached private and link-local subnets, sorted, each once.
func (n Network) LAN() (subnets []netip.Prefix) {
	for _, l := range n.Links {
		for _, p := range l.Addrs {
			subnet, ok := PrivateSubnet(p)
			if !ok {
				subnet, ok = linkLocal(p)
			}
			if ok && !p.IsSingleIP() && !slices.Contains(subnets, subnet) {
				subnets = append(subnets, subnet)
			}
		}
	}
	slices.SortFunc(subnets, netip.Prefix.Compare)
	return subnets
}

// Via returns the index of the interface by which a socket to dst is to leave:
// the one that dst is attached to, otherwise the default route's; 0 if none. An
// invalid dst is one that is not known yet.
func (n Network) Via(dst netip.Addr, is6 bool) int {
	for _, l := range n.Links {
		for _, p := range l.Addrs {
			if dst.IsValid() && !p.IsSingleIP() && p.Contains(dst) {
				return l.Index
			}
		}
	}
	if is6 {
		return n.Default6
	}
	return n.Default4
}

// PrivateSubnet is the network of p if all of it is private (RFC 1918, RFC
// 4193) and it is narrower than the range itself, 192.168.0.0/16 excepted: a
// lease that claims all of 10/8, or public addresses as well, does not take
// traffic out of the TUN (TunnelCrack LocalNet, CVE-2023-36672).
func PrivateSubnet(p netip.Prefix) (netip.Prefix, bool) {
	p = p.Masked()
	for _, r := range []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"),
	} {
		if r.Contains(p.Addr()) {
			return p, p.Bits() > r.Bits() || (p.Bits() == r.Bits() && p.Bits() == 16)
		}
	}
	return netip.Prefix{}, false
}

// linkLocal is the network of p if all of it is link-local (RFC 3927, RFC 4291
// section 2.5.6).
func linkLocal(p netip.Prefix) (netip.Prefix, bool) {
	p = p.Masked()
	bits := 16
	if p.Addr().Is6() {
		bits = 10
	}
	return p, p.Addr().IsLinkLocalUnicast() && p.Bits() >= bits
}

// Destination reads the address that net.Dialer.Control gets. An unspecified
// one (a socket that listens on all, or sends anywhere) is the zero Addr.
func Destination(address string) (dst netip.Addr, loopback bool) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || ap.Addr().IsUnspecified() {
		return netip.Addr{}, false
	}
	dst = ap.Addr().Unmap().WithZone("")
	return dst, dst.IsLoopback()
}

// Halves splits p in two; a single address stays whole. Routes to both win over
// the machine's own route to p without replacing it.
func Halves(p netip.Prefix) []netip.Prefix {
	p = p.Masked()
	if p.IsSingleIP() {
		return []netip.Prefix{p}
	}
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b)
	return []netip.Prefix{netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)}
}

// Diff returns what to remove (last added first) and what to add to get from
// have to want.
func Diff[T any](have, want []T, equal func(a, b T) bool) (remove, add []T) {
	in := func(list []T, x T) bool {
		return slices.ContainsFunc(list, func(y T) bool { return equal(x, y) })
	}
	for _, x := range slices.Backward(have) {
		if !in(want, x) {
			remove = append(remove, x)
		}
	}
	for _, x := range want {
		if !in(have, x) {
			add = append(add, x)
		}
	}
	return remove, add
}
