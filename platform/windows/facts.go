package windows

import (
	"math/bits"
	"net/netip"
	"slices"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// link is one physical interface that is up.
type link struct {
	Name  string
	Index int
	Addrs []netip.Prefix
}

// network is the physical network: every link, and the ones that the default
// routes use (index 0: none).
type network struct {
	Links              []link
	Default4, Default6 int
}

// change tells the engine about n.
func (n network) change(dns []netip.Addr) platform.NetChange {
	c := platform.NetChange{
		Up:   n.Default4 != 0 || n.Default6 != 0,
		Has4: n.Default4 != 0, Has6: n.Default6 != 0,
		DNS: dns, LAN: n.lan(),
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

// lan returns the attached private subnets, never all of 10/8.
func (n network) lan() (subnets []netip.Prefix) {
	for _, l := range n.Links {
		for _, p := range l.Addrs {
			a := p.Addr()
			if !a.IsPrivate() && !a.IsLinkLocalUnicast() || p.Bits() <= 8 || p.IsSingleIP() {
				continue
			}
			if p = p.Masked(); !slices.Contains(subnets, p) {
				subnets = append(subnets, p)
			}
		}
	}
	slices.SortFunc(subnets, netip.Prefix.Compare)
	return subnets
}

// via returns the index of the interface by which a socket to dst is to leave:
// the one that dst is attached to, otherwise the default route's; 0 if none.
func (n network) via(dst netip.Addr, is6 bool) int {
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

// destination reads the address that net.Dialer.Control gets. An unspecified
// one (a socket that listens on all, or sends anywhere) is the zero Addr.
func destination(address string) (dst netip.Addr, loopback bool) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || ap.Addr().IsUnspecified() {
		return netip.Addr{}, false
	}
	dst = ap.Addr().Unmap().WithZone("")
	return dst, dst.IsLoopback()
}

// unicastIF is the value of IP_UNICAST_IF: the interface index in network byte
// order on a little-endian machine, which every Windows is. IPV6_UNICAST_IF
// takes the plain index.
func unicastIF(index int) int { return int(int32(bits.ReverseBytes32(uint32(index)))) }
