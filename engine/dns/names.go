package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// canonical is a name in lower case without the trailing dot.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// under says whether name is zone or below it.
func under[T string | []byte](name T, zone string) bool {
	n := len(name) - len(zone)
	return n >= 0 && string(name[n:]) == zone && (n == 0 || name[n-1] == '.')
}

// Loopback says whether a canonical name is this machine (RFC 6761 section 6.3).
func Loopback(name string) bool { return under(name, "localhost") }

// Nowhere says whether a canonical name is not to exist, so that nobody is asked
// for it.
func Nowhere(name string) bool {
	return under(name, "invalid") || under(name, "onion") || // RFC 6761 section 6.4, RFC 7686
		under(name, "use-application-dns.net") || // so that browsers leave DNS to us
		under(name, "resolver.arpa") || // RFC 9462: and systems too
		// Whoever answers these becomes the proxy or the IPv6 router of all who
		// ask: in a foreign network anybody (Microsoft's global query block list).
		first(name) == "wpad" || first(name) == "isatap" ||
		isNumber(last(name))
}

// first and last are labels of a name.
func first(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}

func last(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// isNumber says whether a name that ends in label is meant as an IPv4 address
// (inet_aton(3); url.spec.whatwg.org, "ends in a number"): there is no such
// top-level domain. Apps ask for 1.2.3.4 only by mistake, as "1.2.3.4.".
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return label != "" && strings.Trim(label, "0123456789") == ""
}

// Below says whether a canonical name is one of the domains or below it.
func Below[T string | []byte](name T, domains []string) bool {
	return slices.ContainsFunc(domains, func(d string) bool { return under(name, d) })
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
