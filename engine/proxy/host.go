package proxy

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxNameBytes  = 253 // RFC 1035 section 2.3.4, as text without the last dot
	maxLabelBytes = 63
)

// ParseHost reads a host: an address, with brackets round IPv6 or without, or a
// name. It returns the address, unmapped, or the name as resolvers are asked for
// it: lower case, international labels as A-labels (RFC 5890), no dot at the end.
//
// What ends in a number is an address or a mistake, never a name (WHATWG URL
// section 3.5): 256.1.1.1, 1.2.3, 0x7f.1. So is an address with a zone, which
// means nothing to a proxy.
func ParseHost(s string) (name string, addr netip.Addr, err error) {
	if inside, ok := strings.CutPrefix(s, "["); ok {
		if inside, ok = strings.CutSuffix(inside, "]"); !ok {
			return "", netip.Addr{}, errHost()
		}
		a, err := netip.ParseAddr(inside)
		if err != nil || !a.Is6() {
			return "", netip.Addr{}, &Error{"host", "the host has brackets and is no IPv6 address", "such as [2001:db8::1]"}
		}
		s = inside
	}
	name = s
	if !isASCII(s) {
		if name, err = ToASCII(s); err != nil {
			return "", netip.Addr{}, errHost()
		}
	}
	name = strings.TrimSuffix(name, ".")
	if a, err := netip.ParseAddr(name); err == nil {
		if a.Zone() != "" {
			return "", netip.Addr{}, errZone()
		}
		return "", a.Unmap(), nil
	}
	if err := checkName(name); err != nil {
		return "", netip.Addr{}, err
	}
	return strings.ToLower(name), netip.Addr{}, nil
}

// CleanHost is ParseHost as one text.
func CleanHost(s string) (string, error) {
	name, addr, err := ParseHost(s)
	if addr.IsValid() {
		return addr.String(), nil
	}
	return name, err
}

// ParseHostPort reads host:port as ParseHost reads the host; port is what stands
// for none, and 0 if there has to be one. It is 1 to 65535.
func ParseHostPort(s string, port uint16) (name string, addr netip.Addr, p uint16, err error) {
	host, text, found := s, "", false
	if a, bare := netip.ParseAddr(s); bare != nil || !a.Is6() {
		if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
			host, text, found = s[:i], s[i+1:], true
		}
	}
	if p = port; found {
		if p, err = parsePort(text); err != nil {
			return "", netip.Addr{}, 0, err
		}
	} else if port == 0 {
		return "", netip.Addr{}, 0, &Error{"port", "the port is missing", "write host:port"}
	}
	name, addr, err = ParseHost(host)
	return name, addr, p, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, &Error{"port", "the port is not a number from 1 to 65535", "write host:port"}
	}
	return uint16(n), nil
}

// ToASCII maps a name as browsers do (UTS 46, non-transitional), but lets
// underscores pass, which real names have, and hyphens anywhere: r3---sn-abc is a
// real kind of label. It checks no length.
func ToASCII(name string) (string, error) {
	s, err := idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false),
		idna.CheckHyphens(false)).ToASCII(name)
	if err != nil || !isASCII(s) || !utf8.ValidString(name) {
		return "", errHost() // idna's error quotes the name
	}
	return s, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// checkName refuses what cannot be the name of a host: letters, digits, hyphens
// and underscores (RFC 1123 section 2.1, and what is in use).
func checkName(s string) error {
	if s == "" {
		return &Error{"host", "the host is missing", "a name or an address, such as proxy.example.com"}
	}
	if len(s) > maxNameBytes {
		return &Error{"host", "the host is longer than 253 bytes", ""}
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			if n := i - start; n == 0 || n > maxLabelBytes {
				return &Error{"host", "the host has a part that is empty or longer than 63 bytes", "such as proxy.example.com"}
			}
			start = i + 1
			continue
		}
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return errHost()
		}
	}
	if isNumber(s[strings.LastIndexByte(s, '.')+1:]) {
		return &Error{"host", "the host ends in a number and is no address", "an IPv4 address is four numbers from 0 to 255, such as 192.0.2.1"}
	}
	return nil
}

// isNumber says whether a label makes a host an IPv4 address for a browser.
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(strings.ToLower(label), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

func errHost() error {
	return &Error{"host", "the host is neither a name nor an address", "a name or an address alone, such as proxy.example.com, 192.0.2.1 or [2001:db8::1]"}
}

func errZone() error {
	return &Error{"host", "the host is an address with a zone (the part from %)", "leave the zone out, or use another address of the host"}
}
