package dns

import "net/netip"

// Scope is how far an address reaches.
type Scope uint8

const (
	Public  Scope = iota
	Private       // a network's own: RFC 1918, RFC 4193
	Host          // this machine, its link, or nobody: RFC 6890
)

// ScopeOf also looks at the IPv4 address in an IPv6 one, where a translator or
// the kernel would send to that.
func ScopeOf(a netip.Addr) Scope {
	a = embedded(a)
	switch {
	case a.IsPrivate():
		return Private
	case !a.IsGlobalUnicast(), a.Is4() && a.As4()[0] == 0: // loopback, link-local, multicast, unspecified, broadcast; "this network"
		return Host
	}
	return Public
}

// embedded is the IPv4 address that a stands for: mapped and compatible (RFC
// 4291 section 2.5.5), NAT64 (RFC 6052 section 2.1), 6to4 (RFC 3056 section 2);
// otherwise a.
func embedded(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is4() {
		return a
	}
	b := a.As16()
	switch {
	case [12]byte(b[:12]) == [12]byte{} && a.Compare(netip.IPv6Loopback()) > 0,
		[12]byte(b[:12]) == [12]byte{0, 0x64, 0xff, 0x9b}:
		return netip.AddrFrom4([4]byte(b[12:]))
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:]))
	}
	return a
}
