package config

import (
	"fmt"
	"slices"
	"strings"
)

// Error is something wrong at one place of a file.
type Error struct {
	File         string
	Line, Column int    // from 1; 0 if the place is not known
	Text         string // the offending line without its value; "" if it is not shown
	Msg          string
	Hint         string // what to do; may be ""
}

// Error shows file:line:column, what is wrong, the line and the hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	fmt.Fprintf(&b, ": %s", e.Msg)
	if e.Text != "" {
		fmt.Fprintf(&b, "\n  %d | %s", e.Line, e.Text)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "\n  hint: %s", e.Hint)
	}
	return b.String()
}

// schema lists the keys of a section, "" being the top; nil if there is no
// such section.
func schema(section string) []string {
	switch section {
	case "":
		return []string{"tun", "listen", "dns", "protect", "upstream", "provider", "group", "rule"}
	case "tun":
		return []string{"enabled", "name", "mtu", "stack"}
	case "listen":
		return []string{"proxy"}
	case "dns":
		return []string{"mode", "servers", "fake_range"}
	case "protect":
		return []string{"kill_switch", "udp", "lan"}
	case "upstream":
		return []string{"name", "url", "sni", "ca", "username", "password", "pool", "early_data"}
	case "provider":
		return []string{"name", "kind", "template", "username", "password", "scheme", "host", "port", "ca", "country", "state", "city",
			"zone", "isp", "username_format", "password_format", "session", "pinned", "ports", "pool", "early_data", "url", "refresh", "policy"}
	case "group":
		return []string{"name", "members", "policy", "weights"}
	case "rule":
		return []string{"domain", "domain_suffix", "cidr", "port", "process", "via"}
	}
	return nil
}

// notYet says whether a key belongs to a part that this build does not have.
func notYet(key []string) bool {
	return slices.Contains([]string{"filter", "share"}, key[0])
}

// unknownKey describes a key that is not in the schema, with a hint.
func unknownKey(key []string) (msg, hint string) {
	section, name := "", key[0]
	if key[0] != "" && schema(key[0]) != nil && len(key) > 1 {
		section, name = key[0], key[1]
	}
	if notYet(key) {
		return fmt.Sprintf("%q is not in this version", strings.Join(key[:min(2, len(key))], ".")), "remove it"
	}
	msg = "unknown key"
	if isWord(name) {
		msg = fmt.Sprintf("unknown key %q", name)
	}
	if section != "" {
		msg += " in [" + section + "]"
	}
	if best := nearest(name, schema(section)); best != "" {
		return msg, fmt.Sprintf("did you mean %q?", best)
	}
	for _, other := range schema("") {
		if slices.Contains(schema(other), name) {
			return msg, fmt.Sprintf("%q belongs in [%s]", name, other)
		}
	}
	return msg, "known here: " + strings.Join(schema(section), ", ")
}

// nearest returns the word closest to s, or "" if none is close.
func nearest(s string, words []string) string {
	best, bestDistance := "", 1+max(1, min(len(s), 12)/3)
	if len(s) > 64 {
		return ""
	}
	for _, w := range words {
		if d := distance(s, w); d < bestDistance {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance counts the letters to change, add, drop or swap with a neighbour.
func distance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// shown is a line of the file as an error may show it: a header, or the key. No
// value is: a secret in the wrong place is still one.
func shown(line string) string {
	line = strings.TrimSpace(line)
	if name := strings.Trim(line, "[] \t"); strings.HasPrefix(line, "[") && schema(name) != nil {
		return line
	}
	key, _, assigned := strings.Cut(line, "=")
	key = strings.TrimSpace(key)
	section, name, dotted := strings.Cut(key, ".")
	if !dotted {
		section, name = "", key
	}
	known := slices.ContainsFunc(schema(""), func(s string) bool { return slices.Contains(schema(s), name) }) || slices.Contains(schema(""), name)
	if !assigned || !known || section != "" && schema(section) == nil {
		return ""
	}
	return key + " = …"
}

// isWord says whether an unknown key may be shown: it looks like one.
func isWord(key string) bool {
	return key != "" && len(key) <= 24 && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_") == ""
}
