package rules

import (
	"errors"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// foldBytes holds any DNS name (RFC 1035 section 3.1: 255 bytes) and any usual
// path; what is longer is folded on the heap.
const foldBytes = 512

// foldName returns name in the form that the indexes hold: A-labels (RFC 5890),
// lower case, no trailing dot. It uses buf if the name fits.
func foldName(buf []byte, name string) []byte {
	name = strings.TrimSuffix(name, ".")
	b := appendLower(buf[:0], name)
	for _, c := range b {
		if c >= 0x80 {
			if ascii, err := toASCII(name); err == nil {
				return []byte(ascii)
			}
			return b // no rule can hold such a name
		}
	}
	return b
}

// foldProcess returns a path in lower case (ASCII letters only).
func foldProcess(buf []byte, path string) []byte { return appendLower(buf[:0], path) }

func appendLower(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

// baseName is what follows the last slash or backslash.
func baseName(path []byte) []byte {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' || path[i] == '\\' {
			return path[i+1:]
		}
	}
	return path
}

// toASCII maps a name as browsers do (UTS 46, non-transitional), but lets
// underscores pass, which real names have.
func toASCII(name string) (string, error) {
	s, err := idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false),
		idna.CheckHyphens(false)).ToASCII(name) // hyphens: r3---sn-abc.example is a real kind of name
	return strings.TrimSuffix(s, "."), err
}

// parseName checks a name from a rule and returns its canonical form.
func parseName(s string) (string, error) {
	if s != "" && (s[len(s)-1] <= '9' || strings.Contains(s, ":")) { // few names are worth asking
		if _, err := netip.ParseAddr(s); err == nil {
			return "", errors.New("is an address: use cidr")
		}
	}
	if strings.HasPrefix(s, "*.") {
		return "", errors.New(`has a wildcard: use domain_suffix = ["` + s[2:] + `"]`)
	}
	name := string(foldName(nil, s))
	if name == "" {
		return "", errors.New("is empty")
	}
	if len(name) > 253 {
		return "", errors.New("is longer than 253 bytes")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", errors.New("has a part that is empty or longer than 63 bytes")
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", errors.New("is not a domain name")
			}
		}
	}
	return name, nil
}
