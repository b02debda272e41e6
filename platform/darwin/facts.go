package darwin

import (
	"net/netip"
	"slices"
	"strings"

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

// parseDNS reads the output of `scutil --dns`: the servers of the interface in
// the scoped part, where ours never is, or else those of the plain resolvers
// that serve no particular domain. Servers in ours are left out.
func parseDNS(out, iface string, ours []netip.Addr) []netip.Addr {
	var r resolver
	var scoped, plain []netip.Addr
	inScoped := false
	flush := func() {
		switch {
		case inScoped && iface != "" && r.iface == iface:
			scoped = append(scoped, r.servers...)
		case !inScoped && r.domain == "":
			plain = append(plain, r.servers...)
		}
		r = resolver{}
	}
	for line := range strings.SplitSeq(out, "\n") {
		switch {
		case strings.HasPrefix(line, "resolver #"):
			flush()
		case strings.HasPrefix(line, "DNS configuration"):
			flush()
			inScoped = strings.Contains(line, "scoped")
		default:
			r.read(line)
		}
	}
	flush()
	if len(scoped) == 0 {
		scoped = plain
	}
	var servers []netip.Addr
	for _, a := range scoped {
		if !slices.Contains(ours, a) && !slices.Contains(servers, a) {
			servers = append(servers, a)
		}
	}
	return servers
}

// resolver is one block of that output.
type resolver struct {
	servers       []netip.Addr
	domain, iface string
}

// read takes one line, "key : value".
func (r *resolver) read(line string) {
	key, value, _ := strings.Cut(line, ":")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch {
	case strings.HasPrefix(key, "nameserver["):
		if a, err := netip.ParseAddr(value); err == nil {
			r.servers = append(r.servers, a)
		}
	case key == "domain":
		r.domain = value
	case key == "if_index": // "6 (en0)"
		_, name, _ := strings.Cut(value, "(")
		r.iface = strings.TrimSuffix(name, ")")
	}
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
