package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
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
	return src.fail(path, hint, "%s cannot be %q", path, clip(value))
}

// deviceName: 15 is IFNAMSIZ less its NUL.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,14}$`)

func validateTUN(src *source, r *raw, c *Config) error {
	c.TUN = TUN{Enabled: r.TUN.Enabled, Name: r.TUN.Name, Stack: r.TUN.Stack}
	if !deviceName.MatchString(r.TUN.Name) {
		return src.fail("tun.name", "up to 15 letters, digits, '-', '_' and '.'", "%q is no name for a network device", clip(r.TUN.Name))
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
			return src.fail("tun.mtu", hint, "mtu cannot be %q", clip(mtu))
		}
	default:
		return src.fail("tun.mtu", hint, "mtu is neither a number nor \"auto\"")
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
	if err != nil {
		return src.fail("listen.proxy", hint, "%q is not ip:port", clip(r.Listen.Proxy))
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
		if err := checkDNSServer(s); err != nil {
			return src.fail(fmt.Sprintf("dns.servers[%d]", i), `such as "https://1.1.1.1/dns-query", "tls://9.9.9.9", "tcp://1.1.1.1", "udp://1.1.1.1", "1.1.1.1"`,
				"%v", err)
		}
	}
	const hint = "an IPv4 network of /16 or larger within 198.18.0.0/15, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10 or 240.0.0.0/5"
	p, err := netip.ParsePrefix(r.DNS.FakeRange)
	if err != nil {
		return src.fail("dns.fake_range", hint, "%q is not a network", clip(r.DNS.FakeRange))
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
			return src.fail(path+"."+key, `url is like "socks5://host:1080", "http://host:8080", "https://host:443" or "direct://"`, "upstream %q: %v", ru.Name, err)
		}
		c.Upstreams = append(c.Upstreams, u)
	}
	return nil
}

// makeUpstream checks one upstream; key is the one at fault if err is not nil.
func makeUpstream(r rawUpstream) (u Upstream, key string, err error) {
	u = Upstream{Name: r.Name, SNI: r.SNI, CA: r.CA}
	p, err := parseUpstreamURL(r.URL)
	if err != nil {
		return u, "url", err
	}
	u.URL, u.Username, u.Password = p.url, p.username, Secret{value: p.password}
	if r.Username != nil || r.Password != nil {
		if p.username != "" || p.password != "" {
			return u, "url", fmt.Errorf("credentials are given twice, in the url and beside it")
		}
	}
	if r.Username != nil {
		u.Username = *r.Username
	}
	if r.Password != nil {
		if u.Password, err = parseSecret(*r.Password); err != nil {
			return u, "password", fmt.Errorf("password %w", err)
		}
	}
	if u.Pool, u.EarlyData, key, err = transport(r.Pool, r.EarlyData); err != nil {
		return u, key, err
	}
	switch {
	case u.Username == "" && !u.Password.IsZero():
		return u, "password", fmt.Errorf("there is a password but no username")
	case u.Username != "" && p.scheme == "direct":
		return u, "url", fmt.Errorf("a direct upstream takes no credentials")
	case len(u.Username) > 255 || len(u.Password.value) > 255:
		return u, "username", fmt.Errorf("credentials are longer than 255 bytes")
	case u.SNI != "" && p.scheme != "https":
		return u, "sni", fmt.Errorf("sni is for https upstreams only")
	case u.CA != "" && p.scheme != "https":
		return u, "ca", fmt.Errorf("ca is for https upstreams only")
	case u.CA != "" && !filepath.IsAbs(u.CA):
		return u, "ca", fmt.Errorf("ca needs an absolute path")
	case u.SNI != "" && !isHost(u.SNI):
		return u, "sni", fmt.Errorf("sni %q is not a host name", clip(u.SNI))
	}
	return u, "", nil
}

func validateRules(src *source, r *raw, c *Config) error {
	for i, rr := range r.Rule {
		path := fmt.Sprintf("rule[%d]", i)
		rule := Rule{Domain: rr.Domain, DomainSuffix: rr.DomainSuffix, Process: rr.Process, Via: rr.Via}
		if len(rr.Domain)+len(rr.DomainSuffix)+len(rr.CIDR)+len(rr.Port)+len(rr.Process) == 0 {
			return src.fail(path, "give domain, domain_suffix, cidr, port or process", "rule %d has no condition", i+1)
		}
		for key, list := range map[string][]string{"domain": rr.Domain, "domain_suffix": rr.DomainSuffix} {
			for j, s := range list {
				hint := badDomain(s)
				if key == "domain" && strings.HasPrefix(s, ".") {
					hint = "domain_suffix takes names with a leading dot"
				}
				if hint != "" {
					return src.fail(fmt.Sprintf("%s.%s[%d]", path, key, j), hint, "rule %d: %s %q is not a domain name", i+1, key, clip(s))
				}
			}
		}
		for j, s := range rr.CIDR {
			p, err := parseCIDR(s)
			if err != nil {
				return src.fail(fmt.Sprintf("%s.cidr[%d]", path, j), "such as 192.0.2.0/24 or 2001:db8::/32", "rule %d: %v", i+1, err)
			}
			rule.CIDR = append(rule.CIDR, p)
		}
		for j, v := range rr.Port {
			p, ok := parsePort(v)
			if !ok {
				return src.fail(fmt.Sprintf("%s.port[%d]", path, j), `such as 443 or "8000-9000"`, "rule %d: %q is not a port from 1 to 65535 or a range of them", i+1, clip(fmt.Sprint(v)))
			}
			rule.Port = append(rule.Port, p)
		}
		for j, s := range rr.Process {
			if strings.TrimSpace(s) == "" || strings.ContainsRune(s, 0) {
				return src.fail(fmt.Sprintf("%s.process[%d]", path, j), `such as "firefox" or "/usr/bin/curl"`, "rule %d: process %q is not a program", i+1, clip(s))
			}
		}
		if err := checkVia(src, path, i+1, rr.Via, c.Names()); err != nil {
			return err
		}
		c.Rules = append(c.Rules, rule)
	}
	return nil
}

func checkVia(src *source, path string, number int, via string, names []string) error {
	words := append([]string{"auto", "direct", "block"}, names...)
	if slices.Contains(words, via) {
		return nil
	}
	hint := "one of: " + clip(strings.Join(words, ", "))
	if best := nearest(via, words); best != "" {
		hint = fmt.Sprintf("did you mean %q?", best)
	}
	if via == "" {
		return src.fail(path, hint, "rule %d has no via", number)
	}
	return src.fail(path+".via", hint, "rule %d: there is no upstream %q", number, clip(via))
}

// parseCIDR reads a network, or an address as a network of one.
func parseCIDR(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is not a network", clip(s))
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s has bits beyond its length: %s is meant?", p, p.Masked())
	}
	return p, nil
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
