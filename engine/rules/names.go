package rules

import (
	"errors"
	"fmt"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
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
			if ascii, err := proxy.ToASCII(name); err == nil {
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

// parseName checks a name from a rule and returns its canonical form.
func parseName(s string) (string, error) {
	if strings.HasPrefix(s, "*.") {
		return "", errors.New("has a wildcard: use domain_suffix, without the \"*.\"")
	}
	name, addr, err := proxy.ParseHost(s)
	switch {
	case addr.IsValid():
		return "", errors.New("is an address: use cidr")
	case err != nil:
		return "", fmt.Errorf("is no name: %w", err)
	}
	return name, nil
}
