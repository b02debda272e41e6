package dns

import (
	"net/netip"
	"strconv"
	"strings"
)

// canonical is a name in lower case without the trailing dot.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// under says whether name is zone or below it.
func under(name, zone string) bool {
	return strings.HasSuffix(name, zone) && (len(name) == len(zone) || name[len(name)-len(zone)-1] == '.')
}

// Loopback says whether a canonical name is this machine (RFC 6761 section 6.3).
func Loopback(name string) bool { return under(name, "localhost") }

// nowhere says whether a canonical name is not to exist.
func nowhere(name string) bool {
	return under(name, "invalid") || under(name, "onion") || // RFC 6761 section 6.4, RFC 7686
		under(name, "use-application-dns.net") || // so that browsers leave DNS to us
		under(name, "resolver.arpa") // RFC 9462: and systems too
}

// Local says whether only this machine's own network can know a canonical name
// (RFC 6762 section 3, RFC 8375, and what routers make up).
func Local(name string) bool {
	return name != "" && !strings.Contains(name, ".") ||
		under(name, "local") || under(name, "home.arpa") || under(name, "lan") || under(name, "internal")
}

// isHostName says whether a canonical name can be one of a host that an
// upstream is asked to dial: letters, digits, hyphens, underscores.
func isHostName(name string) bool {
	if name == "" || len(name) > 253 || under(name, "arpa") {
		return false
	}
	label := 0
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
			continue
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0
}

// reverseAddr reads 4.3.2.1.in-addr.arpa and its IPv6 sister (RFC 3596
// section 2.5).
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		var b [4]byte
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			b[3-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n, err := strconv.ParseUint(rest[2*i:2*i+1], 16, 8)
		if err != nil || i < 31 && rest[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b).Unmap(), true
}
