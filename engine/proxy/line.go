package proxy

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
)

// errOther is a proxy of a kind that is not for us.
var errOther = errors.New("the scheme is none of http, https, socks5")

// parseProxy reads one proxy of a list.
func parseProxy(s, scheme string) (Spec, error) {
	if strings.ContainsFunc(s, unicode.IsSpace) {
		return Spec{}, &Error{"url", "white space inside", ""}
	}
	p := Spec{Scheme: scheme}
	before, rest, isURL := strings.Cut(s, "://")
	if isURL {
		p.Scheme = schemeOf(before)
		if err := CheckScheme(p.Scheme); err != nil {
			if len(before) <= 12 && strings.Trim(p.Scheme, "abcdefghijklmnopqrstuvwxyz0123456789+") == "" {
				err = errOther
			}
			return p, err
		}
		s = strings.TrimSuffix(rest, "/")
	}
	if p.read(s, isURL) {
		return p, p.Validate()
	}
	if i := strings.LastIndexByte(s, '#'); isURL && i >= 0 && p.read(s[:i], isURL) { // a remark, as subscriptions have it
		return p, p.Validate()
	}
	if f := fields(s); len(f) == 2 { // one host and port: say which is wrong
		if _, err := specOf(p.Scheme, f[0], f[1], "", ""); err != nil {
			return p, err
		}
	}
	return p, &Error{"url", "not a proxy: write host:port or host:port:user:password", ""}
}

func (p *Spec) read(s string, isURL bool) bool {
	return isURL && p.withoutPort(s) || p.withAt(s, isURL) || p.withColons(s)
}

// withoutPort reads host and user:pass@host behind a scheme, which has a port of
// its own.
func (p *Spec) withoutPort(s string) bool {
	i := strings.LastIndexByte(s, '@')
	host, err := CleanHost(s[i+1:])
	if err != nil || strings.Contains(s[i+1:], ":") && s[i+1] != '[' {
		return false
	}
	p.Host, p.Port = host, map[string]uint16{HTTP: 80, HTTPS: 443, SOCKS5: 1080}[p.Scheme]
	if i >= 0 {
		p.credentials(s[:i], true)
	}
	return true
}

// credentials reads user:pass.
func (p *Spec) credentials(s string, decode bool) {
	user, pass, _ := strings.Cut(s, ":")
	if decode {
		u, err1 := url.PathUnescape(user)
		w, err2 := url.PathUnescape(pass)
		if err1 == nil && err2 == nil { // otherwise the % is meant as it stands
			user, pass = u, w
		}
	}
	p.Username, p.Password = user, Secret(pass)
}

// withAt reads user:pass@host:port and host:port@user:pass.
func (p *Spec) withAt(s string, decode bool) bool {
	first, last := strings.IndexByte(s, '@'), strings.LastIndexByte(s, '@')
	if first < 0 {
		return false
	}
	host, port, right := splitHostPort(s[last+1:])
	creds := s[:last]
	leftHost, leftPort, left := splitHostPort(s[:first])
	// Where both sides could be host:port, the one that is surely a host wins,
	// and then the usual order.
	if left && (!right || sureHost(leftHost) && !sureHost(host)) {
		host, port, creds = leftHost, leftPort, s[first+1:]
	} else if !right {
		return false
	}
	p.Host, p.Port = host, port
	p.credentials(creds, decode)
	return true
}

// withColons reads host:port, host:port:user:pass and user:pass:host:port. The
// password may hold colons.
func (p *Spec) withColons(s string) bool {
	f := fields(s)
	if len(f) < 2 || len(f) == 3 || bareIPv6(s) {
		return false
	}
	host, port, left := hostPort(f[0], f[1])
	if len(f) == 2 {
		p.Host, p.Port = host, port
		return left
	}
	n := len(f)
	lastHost, lastPort, right := hostPort(f[n-2], f[n-1])
	switch {
	case right && (!left || sureHost(lastHost) && !sureHost(host)):
		p.Host, p.Port, p.Username, p.Password = lastHost, lastPort, f[0], Secret(strings.Join(f[1:n-2], ":"))
	case left:
		p.Host, p.Port, p.Username, p.Password = host, port, f[2], Secret(strings.Join(f[3:], ":"))
	default:
		return false
	}
	return true
}

// bareIPv6 says that s is an address without brackets, with a port or without.
func bareIPv6(s string) bool {
	_, err := netip.ParseAddr(s)
	if err != nil {
		_, err = netip.ParseAddr(s[:strings.LastIndexByte(s, ':')])
	}
	return err == nil && strings.Count(s, ":") > 1
}

// fields splits at colons, but not inside the brackets of an IPv6 address.
func fields(s string) (f []string) {
	for {
		if strings.HasPrefix(s, "[") {
			if end := strings.IndexByte(s, ']'); end > 0 && isAddr(s[1:end]) && (end+1 == len(s) || s[end+1] == ':') {
				f = append(f, s[:end+1])
				if end+1 == len(s) {
					return f
				}
				s = s[end+2:]
				continue
			}
		}
		one, rest, more := strings.Cut(s, ":")
		f = append(f, one)
		if !more {
			return f
		}
		s = rest
	}
}

func splitHostPort(s string) (string, uint16, bool) {
	f := fields(s)
	if len(f) != 2 {
		return "", 0, false
	}
	return hostPort(f[0], f[1])
}

// hostPort reads a host that has brackets if it is IPv6, and its port.
func hostPort(host, port string) (string, uint16, bool) {
	if strings.Contains(host, ":") && host[0] != '[' {
		return "", 0, false
	}
	n, err := parsePort(port)
	if err != nil {
		return "", 0, false
	}
	host, err = CleanHost(host)
	return host, n, err == nil
}

// sureHost says that a host can hardly be a user name.
func sureHost(s string) bool { return isAddr(s) || strings.Contains(s, ".") || s == "localhost" }

func isAddr(s string) bool { _, err := netip.ParseAddr(s); return err == nil }
