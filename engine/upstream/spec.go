package upstream

import (
	"strings"
	"unicode"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Spec says what an upstream is: a proxy, direct, or a group.
type Spec = proxy.Spec

const (
	schemeGroup  = "group" // the scheme of NewGroup's Spec
	maxHostBytes = 253     // RFC 1035
)

// clip bounds text from outside and drops what could disturb a terminal or a
// log line.
func clip(s string, max int) string {
	if len(s) > 4*max {
		s = s[:4*max]
	}
	s = strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > max {
		s = strings.ToValidUTF8(s[:max], "") + "…"
	}
	return strings.TrimSpace(s)
}
