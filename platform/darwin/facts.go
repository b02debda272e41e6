package darwin

import (
	"net/netip"
	"slices"
	"strings"
)

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
