package origin

import (
	"net/netip"
	"strings"
)

// Zone is the lab's table of names, the only truth about *.test: the DNS server
// answers from it, and proxies resolve by it. It does not change once in use.
type Zone struct {
	// Hosts are exact names, lower case, without the final dot.
	Hosts map[string][]netip.Addr
	// Any answers for every other name under test, but not for those in Missing.
	Any     []netip.Addr
	Missing map[string]bool
	// CNAME maps a name to its canonical one.
	CNAME map[string]string
}

// Lookup returns a name's addresses, and whether the name exists.
func (z *Zone) Lookup(name string) ([]netip.Addr, bool) {
	name = Canonical(name)
	if to, ok := z.CNAME[name]; ok {
		name = to
	}
	if addrs, ok := z.Hosts[name]; ok {
		return addrs, true
	}
	if z.Missing[name] || !strings.HasSuffix(name, ".test") {
		return nil, false
	}
	return z.Any, true
}

// Canonical is name in lower case and without the final dot.
func Canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
