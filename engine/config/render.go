package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// section is one table as TOML and Get show it.
type section struct {
	name   string // "tun", "upstream"
	item   string // what Get calls one of several: the upstream's name, the rule's number
	fields []field
}

// field is a key and its value in TOML.
type field struct{ key, value string }

// sections lists everything that is in force, in the order of the reference.
func (c *Config) sections() []section {
	mtu := `"auto"`
	if c.TUN.MTU != 0 {
		mtu = fmt.Sprint(c.TUN.MTU)
	}
	out := []section{
		{name: "tun", fields: []field{
			{"enabled", fmt.Sprint(c.TUN.Enabled)}, {"name", Quote(c.TUN.Name)}, {"mtu", mtu}, {"stack", Quote(c.TUN.Stack)},
		}},
		{name: "listen", fields: []field{{"proxy", Quote(c.Listen.Proxy)}}},
		{name: "dns", fields: []field{
			{"mode", Quote(c.DNS.Mode)}, {"servers", quoteList(c.DNS.shown())}, {"fake_range", Quote(c.DNS.FakeRange.String())},
		}},
		{name: "protect", fields: []field{
			{"kill_switch", Quote(c.Protect.KillSwitch)}, {"udp", Quote(c.Protect.UDP)}, {"lan", fmt.Sprint(c.Protect.LAN)},
		}},
	}
	for _, u := range c.Upstreams {
		s := section{name: "upstream", item: u.Name, fields: []field{{"name", Quote(u.Name)}, {"url", Quote(u.URL)}}}
		for _, f := range []field{{"sni", u.SNI}, {"ca", u.CA}, {"username", u.Username}, {"password", shownSecret(u.Password, u.PasswordFrom)}} {
			if f.value != "" {
				s.fields = append(s.fields, field{f.key, Quote(f.value)})
			}
		}
		s.fields = append(s.fields, transportFields(u.Pool, u.EarlyData)...)
		out = append(out, s)
	}
	for _, p := range c.Providers {
		out = append(out, section{name: "provider", item: p.Name, fields: p.fields()})
	}
	for _, g := range c.Groups {
		out = append(out, section{name: "group", item: g.Name, fields: g.fields()})
	}
	for i, r := range c.Rules {
		out = append(out, section{name: "rule", item: fmt.Sprint(i + 1), fields: r.fields()})
	}
	return out
}

func (r Rule) fields() (out []field) {
	var nets, ports []string
	for _, p := range r.CIDR {
		nets = append(nets, p.String())
	}
	for _, p := range r.Port {
		ports = append(ports, p.String())
	}
	for _, l := range []struct {
		key  string
		list []string
	}{{"domain", r.Domain}, {"domain_suffix", r.DomainSuffix}, {"cidr", nets}, {"port", ports}, {"process", r.Process}} {
		if len(l.list) > 0 {
			out = append(out, field{l.key, quoteList(l.list)})
		}
	}
	return append(out, field{"via", Quote(r.Via)})
}

// TOML renders the configuration in force, defaults included. Passwords are
// "redacted", or the reference to where they are kept.
func (c *Config) TOML() string {
	var b strings.Builder
	for i, s := range c.sections() {
		if i > 0 {
			b.WriteByte('\n')
		}
		if s.item != "" {
			fmt.Fprintf(&b, "[[%s]]\n", s.name)
		} else {
			fmt.Fprintf(&b, "[%s]\n", s.name)
		}
		for _, f := range s.fields {
			fmt.Fprintf(&b, "%s = %s\n", f.key, f.value)
		}
	}
	return b.String()
}

// Get returns the value of a key such as "tun.mtu", "upstream.NAME.url" or
// "rule.1.via": a plain word without quotes, lists as TOML. A key that can be
// set but is not gives "".
func (c *Config) Get(key string) (string, error) {
	parts := strings.Split(key, ".")
	name, item, k := parts[0], "", ""
	several := slices.Contains([]string{"upstream", "provider", "group", "rule"}, name)
	switch {
	case several && len(parts) == 3:
		item, k = parts[1], parts[2]
	case !several && len(parts) == 2:
		k = parts[1]
	default:
		return "", errors.New("there is no such key: keys are like tun.mtu, upstream.NAME.url, rule.1.via")
	}
	if err := checkKey(name, k); err != nil {
		return "", err
	}
	for _, s := range c.sections() {
		if s.name != name || s.item != item {
			continue
		}
		for _, f := range s.fields {
			if f.key == k {
				return unquote(f.value), nil
			}
		}
		return "", nil
	}
	return "", fmt.Errorf("there is no %s of that name", name)
}

// checkKey says whether section.key exists, with a hint if not.
func checkKey(name, key string) error {
	for _, k := range schema(name) {
		if name != "" && k == key {
			return nil
		}
	}
	path := []string{name, key}
	if schema(name) == nil || name == "" {
		path = path[:1]
	}
	msg, hint := unknownKey(path)
	return fmt.Errorf("%s: %s", msg, hint)
}

// Quote makes a TOML basic string.
func Quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func quoteList(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = Quote(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// unquote undoes quote for values without control characters.
func unquote(s string) string {
	if !strings.HasPrefix(s, `"`) {
		return s
	}
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(s[1 : len(s)-1])
}
