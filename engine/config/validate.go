package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
)

// validate checks every value and makes the Config.
func validate(src *source, r *raw) (*Config, error) {
	c := Default()
	for _, step := range []func(*source, *raw, *Config) error{
		validateTUN, validateListen, validateDNS, validateProtect, validateUpstreams, validateProviders, validateGroups, validateRules,
	} {
		if err := step(src, r, c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// oneOf checks a word.
func oneOf(src *source, path, value string, words ...string) error {
	if slices.Contains(words, value) {
		return nil
	}
	hint := "one of: " + strings.Join(words, ", ")
	if best := nearest(value, words); best != "" {
		hint = fmt.Sprintf("did you mean %q?", best)
	}
	return src.fail(path, hint, "this is no value of %s", path)
}

// deviceName: 15 is IFNAMSIZ less its NUL.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,14}$`)

func validateTUN(src *source, r *raw, c *Config) error {
	c.TUN = TUN{Enabled: r.TUN.Enabled, Name: r.TUN.Name, Stack: r.TUN.Stack}
	if !deviceName.MatchString(r.TUN.Name) || slices.Contains([]string{"lo", "all", "default"}, r.TUN.Name) {
		return src.fail("tun.name", "up to 15 letters, digits, '-', '_' and '.'; not lo, all or default", "name is none for a network device")
	}
	const hint = `"auto", or bytes from 1280 to 65535`
	switch mtu := r.TUN.MTU.(type) {
	case int64:
		if mtu < 1280 || mtu > 65535 {
			return src.fail("tun.mtu", hint, "mtu %d is out of range", mtu)
		}
		c.TUN.MTU = int(mtu)
	case string:
		if mtu != "auto" {
			return src.fail("tun.mtu", hint, "mtu is a number or \"auto\"")
		}
	default:
		return src.fail("tun.mtu", hint, "mtu is a number or \"auto\"")
	}
	return oneOf(src, "tun.stack", c.TUN.Stack, "auto", "kernel", "userspace")
}

func validateListen(src *source, r *raw, c *Config) error {
	c.Listen.Proxy = r.Listen.Proxy
	if r.Listen.Proxy == "" {
		return nil
	}
	const hint = `an address of this machine alone such as "127.0.0.1:7890" or "[::1]:7890"; "" turns it off`
	ap, err := netip.ParseAddrPort(strings.Replace(r.Listen.Proxy, "localhost:", "127.0.0.1:", 1))
	if err != nil || ap.Addr().Zone() != "" {
		return src.fail("listen.proxy", hint, "proxy is not ip:port")
	}
	if !ap.Addr().IsLoopback() {
		return src.fail("listen.proxy", hint, "%s is not a loopback address: other machines could use the proxy", ap.Addr())
	}
	c.Listen.Proxy = ap.String()
	return nil
}

// fakeSpace lists the networks that fake addresses may come from: special use
// (RFC 6890), so that no host of the internet is hidden by them.
func fakeSpace() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("240.0.0.0/5"),
	}
}

func validateDNS(src *source, r *raw, c *Config) error {
	c.DNS = DNS{Mode: r.DNS.Mode, Servers: r.DNS.Servers}
	if err := oneOf(src, "dns.mode", r.DNS.Mode, "fake-ip", "real"); err != nil {
		return err
	}
	if len(r.DNS.Servers) == 0 {
		return src.fail("dns.servers", "leave the key out for the default", "no DNS server is given")
	}
	if len(r.DNS.Servers) > 16 {
		return src.fail("dns.servers", "two or three are plenty", "more than 16 DNS servers")
	}
	for i, s := range r.DNS.Servers {
		if _, err := proxy.ParseServer(s); err != nil {
			return src.wrong(fmt.Sprintf("dns.servers[%d]", i), fmt.Sprintf("server %d", i+1), "", err)
		}
	}
	const hint = "an IPv4 network of /16 or larger within 198.18.0.0/15, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or 240.0.0.0/5"
	p, err := netip.ParsePrefix(r.DNS.FakeRange)
	if err != nil {
		return src.fail("dns.fake_range", hint, "fake_range is not a network")
	}
	if p != p.Masked() || p.Bits() > 16 || !slices.ContainsFunc(fakeSpace(), func(s netip.Prefix) bool {
		return s.Bits() <= p.Bits() && s.Contains(p.Addr())
	}) {
		return src.fail("dns.fake_range", hint, "%s cannot hold fake addresses", p)
	}
	c.DNS.FakeRange = p
	return nil
}

func validateProtect(src *source, r *raw, c *Config) error {
	c.Protect = Protect{KillSwitch: r.Protect.KillSwitch, UDP: r.Protect.UDP, LAN: r.Protect.LAN}
	if r.Protect.KillSwitch == "always" {
		return src.fail("protect.kill_switch", `use "auto" or "off"`, `kill_switch = "always" is not in this version`)
	}
	if err := oneOf(src, "protect.kill_switch", r.Protect.KillSwitch, "auto", "off"); err != nil {
		return err
	}
	return oneOf(src, "protect.udp", r.Protect.UDP, "auto", "block", "direct")
}

func validateUpstreams(src *source, r *raw, c *Config) error {
	for i, ru := range r.Upstream {
		path := fmt.Sprintf("upstream[%d]", i)
		if err := c.checkName(src, path, "upstream", i, ru.Name); err != nil {
			return err
		}
		u, key, err := makeUpstream(ru)
		if err != nil {
			return src.wrong(path+"."+key, fmt.Sprintf("upstream %q", ru.Name), "", err)
		}
		if _, err := u.spec(); err != nil {
			return src.failUpstream(i, u, err)
		}
		c.Upstreams = append(c.Upstreams, u)
	}
	return nil
}

// failUpstream places what Upstream.Spec has said.
func (s *source) failUpstream(i int, u Upstream, err error) error {
	key, hint := "url", ""
	var pe *proxy.Error
	switch {
	case errors.As(err, &errCA{}):
		key, hint = "ca", "the absolute path of a PEM file that the service can read"
	case errors.As(err, &pe) && slices.Contains([]string{"username", "password", "sni"}, pe.Field):
		key = pe.Field
	}
	path := fmt.Sprintf("upstream[%d].", i)
	if _, given := s.keys[path+key]; !given {
		key = "url" // which may have the credentials in it
	}
	return s.wrong(path+key, fmt.Sprintf("upstream %q", u.Name), hint, err)
}

// makeUpstream takes one upstream from the file; key is the one at fault if err
// is not nil.
func makeUpstream(r rawUpstream) (u Upstream, key string, err error) {
	u = Upstream{Name: r.Name, SNI: r.SNI, CA: r.CA}
	if u.URL, u.Username, u.Password, err = splitURL(r.URL); err != nil {
		return u, "url", err
	}
	if (r.Username != nil || r.Password != nil) && (u.Username != "" || u.Password != "") {
		return u, "url", errors.New("credentials are given twice, in the url and beside it")
	}
	if r.Username != nil {
		u.Username = *r.Username
	}
	if r.Password != nil {
		if u.Password, u.PasswordFrom, err = parseSecret(*r.Password); err != nil {
			return u, "password", err
		}
	}
	if u.Pool, u.EarlyData, key, err = transport(r.Pool, r.EarlyData); err != nil {
		return u, key, err
	}
	scheme, _, _ := strings.Cut(u.URL, ":")
	switch {
	case u.Username == "" && u.PasswordFrom != "":
		return u, "password", errors.New("there is a password but no username")
	case scheme == proxy.Direct && u.Username+u.Password.Reveal()+u.PasswordFrom != "":
		return u, "url", errors.New("a direct upstream takes no credentials")
	case u.SNI != "" && scheme != proxy.HTTPS:
		return u, "sni", errors.New("sni is for https upstreams only")
	case u.CA != "" && scheme != proxy.HTTPS:
		return u, "ca", errors.New("ca is for https upstreams only")
	case u.CA != "" && !filepath.IsAbs(u.CA):
		return u, "ca", errors.New("ca needs an absolute path")
	}
	return u, "", nil
}

func validateRules(src *source, r *raw, c *Config) error {
	for i, rr := range r.Rule {
		path, what := fmt.Sprintf("rule[%d]", i), fmt.Sprintf("rule %d", i+1)
		rule := Rule{Domain: rr.Domain, DomainSuffix: rr.DomainSuffix, Process: rr.Process, Via: rr.Via}
		for j, s := range rr.CIDR {
			p, err := parseCIDR(s)
			if err != nil {
				return src.wrong(fmt.Sprintf("%s.cidr[%d]", path, j), what, "such as 192.0.2.0/24 or 2001:db8::/32", err)
			}
			rule.CIDR = append(rule.CIDR, p)
		}
		for j, v := range rr.Port {
			p, ok := parsePort(v)
			if !ok {
				return src.fail(fmt.Sprintf("%s.port[%d]", path, j), `such as 443 or "8000-9000"`, "%s: a port is a number from 1 to 65535, or a range of them", what)
			}
			rule.Port = append(rule.Port, p)
		}
		if err := checkVia(src, path, i+1, rr.Via, c.Names()); err != nil {
			return err
		}
		c.Rules = append(c.Rules, rule)
	}
	_, err := c.RuleSet()
	var re *rules.Error
	if !errors.As(err, &re) {
		return err
	}
	path := fmt.Sprintf("rule[%d]", re.Rule-1)
	if re.Key != "" {
		path = fmt.Sprintf("%s.%s[%d]", path, re.Key, re.Index)
	}
	return src.wrong(path, fmt.Sprintf("rule %d", re.Rule), "", fmt.Errorf("%s %w", cmp.Or(re.Key, "it"), re.Err))
}

// RuleSet compiles the rules. The error is a *rules.Error, and nil for what Parse
// has returned.
func (c *Config) RuleSet() (*rules.Set, error) {
	list := make([]rules.Rule, 0, len(c.Rules))
	for _, r := range c.Rules {
		rule := rules.Rule{Domain: r.Domain, DomainSuffix: r.DomainSuffix, CIDR: r.CIDR, Process: r.Process, Via: r.Via}
		for _, p := range r.Port {
			rule.Port = append(rule.Port, rules.PortRange{From: p.From, To: p.To})
		}
		list = append(list, rule)
	}
	return rules.Compile(list)
}

func checkVia(src *source, path string, number int, via string, names []string) error {
	words := append([]string{"auto", "direct", "block"}, names...)
	if slices.Contains(words, via) {
		return nil
	}
	hint := "one of: " + strings.Join(words[:min(len(words), 12)], ", ")
	if best := nearest(via, words); best != "" {
		hint = fmt.Sprintf("did you mean %q?", best)
	}
	if via == "" {
		return src.fail(path, hint, "rule %d has no via", number)
	}
	return src.fail(path+".via", hint, "rule %d: via names no upstream, provider or group", number)
}

// parseCIDR reads a network, or an address as a network of one.
func parseCIDR(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, errors.New("cidr is not a network")
	}
	if p != p.Masked() {
		return p, &proxy.Error{Field: "cidr", Msg: "cidr has bits beyond its length", Hint: "did you mean " + p.Masked().String() + "?"}
	}
	return p, nil
}

// shown is the servers as config show prints them.
func (d DNS) shown() (out []string) {
	for _, text := range d.Servers {
		if s, err := proxy.ParseServer(text); err == nil && strings.Contains(text, "://") {
			text = s.String()
		}
		out = append(out, text)
	}
	return out
}

func parsePort(v any) (PortRange, bool) {
	var from, to string
	switch v := v.(type) {
	case int64:
		from = strconv.FormatInt(v, 10)
		to = from
	case string:
		var isRange bool
		if from, to, isRange = strings.Cut(v, "-"); !isRange {
			to = from
		}
	}
	f, err1 := strconv.ParseUint(strings.TrimSpace(from), 10, 16)
	t, err2 := strconv.ParseUint(strings.TrimSpace(to), 10, 16)
	return PortRange{uint16(f), uint16(t)}, err1 == nil && err2 == nil && f >= 1 && f <= t
}
