package resolve

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// Bounds of a list.
const (
	maxListBytes  = 8 << 20
	maxListErrors = 100 // lines that are complained about one by one
)

// LineError is a line of a list that is no proxy. It does not quote the line,
// which may hold a password.
type LineError struct {
	Line int // from 1
	Text string
}

func (e LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

// ParseList reads proxies, one on a line or separated by commas, each as
//
//	host:port                  user:pass@host:port
//	host:port:user:pass        host:port@user:pass
//	user:pass:host:port        scheme://any of these
//
// or as the columns host,port or host,port,user,pass. Addresses of IPv6 stand in
// brackets. In what has a scheme and an @, user and password may be
// percent-encoded. Empty lines and what follows # or ; at the start of a word
// are left out, and so are proxies that stand there twice. scheme is for those
// that have none.
//
// A line that is no proxy is skipped and told of, at most 100 times. It is an
// error if no line is one. At most 10,000 proxies are read.
func ParseList(data []byte, scheme string) (gateways []Gateway, skipped []LineError, err error) {
	if len(data) > maxListBytes {
		return nil, nil, fmt.Errorf("larger than %d MiB", maxListBytes>>20)
	}
	if !knownScheme(scheme) {
		return nil, nil, fmt.Errorf("scheme %q is none of http, https, socks5", scheme)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	seen := map[Gateway]bool{}
	for n, line := range splitLines(text) {
		found, err := parseLine(line, scheme)
		if err != nil && len(skipped) < maxListErrors {
			skipped = append(skipped, LineError{n + 1, err.Error()})
		}
		for _, g := range found {
			if len(gateways) == maxMembers {
				return gateways, append(skipped, LineError{n + 1, fmt.Sprintf("more than %d proxies: the rest is left out", maxMembers)}), nil
			}
			if !seen[g] {
				seen[g] = true
				gateways = append(gateways, g)
			}
		}
	}
	if len(gateways) == 0 {
		if len(skipped) > 0 {
			return nil, skipped, fmt.Errorf("no proxies: %w", skipped[0])
		}
		return nil, nil, errors.New("no proxies: it is empty")
	}
	return gateways, skipped, nil
}

// splitLines takes \n, \r\n and \r for the end of a line.
func splitLines(s string) []string {
	return strings.Split(strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n"), "\n")
}

// parseLine reads the proxies of one line, none if it is empty.
func parseLine(line, scheme string) ([]Gateway, error) {
	line = strings.TrimSpace(withoutComment(line))
	if line == "" {
		return nil, nil
	}
	if pieces := strings.Split(line, ","); len(pieces) > 1 {
		var all []Gateway
		for _, p := range pieces {
			if p = strings.TrimSpace(p); p == "" {
				continue
			}
			g, err := parseProxy(p, scheme)
			if err != nil {
				all = nil
				break
			}
			all = append(all, g)
		}
		if all != nil {
			return all, nil
		}
		for i := range pieces {
			pieces[i] = strings.Trim(strings.TrimSpace(pieces[i]), `"`)
		}
		if g, ok := fromColumns(pieces, scheme); ok {
			return []Gateway{g}, nil
		}
	}
	g, err := parseProxy(line, scheme)
	if err != nil {
		return nil, err
	}
	return []Gateway{g}, nil
}

// withoutComment cuts at # or ; that begins the line or follows white space,
// and at // that begins it.
func withoutComment(line string) string {
	if strings.HasPrefix(strings.TrimSpace(line), "//") {
		return ""
	}
	space := true
	for i, r := range line {
		if space && (r == '#' || r == ';') {
			return line[:i]
		}
		space = unicode.IsSpace(r)
	}
	return line
}

func fromColumns(c []string, scheme string) (Gateway, bool) {
	if len(c) != 2 && len(c) != 4 {
		return Gateway{}, false
	}
	host, port, ok := hostPort(c[0], c[1])
	if !ok {
		return Gateway{}, false
	}
	g := Gateway{Scheme: scheme, Host: host, Port: port}
	if len(c) == 4 {
		g.Username, g.Password = c[2], Secret(c[3])
	}
	return g, g.validate() == nil
}

// parseProxy reads one proxy.
func parseProxy(s, scheme string) (Gateway, error) {
	if strings.ContainsFunc(s, unicode.IsSpace) {
		return Gateway{}, errors.New("white space inside")
	}
	g := Gateway{Scheme: scheme}
	before, rest, isURL := strings.Cut(s, "://")
	if isURL {
		g.Scheme = strings.ToLower(before)
		if g.Scheme == "socks5h" {
			g.Scheme = "socks5"
		}
		if !knownScheme(g.Scheme) {
			return g, errors.New("the scheme is none of http, https, socks5") // not quoted: it may be part of a password
		}
		s = strings.TrimSuffix(rest, "/")
	}
	if !g.withAt(s, isURL) && !g.withColons(s) {
		return g, errors.New("not a proxy: write host:port or host:port:user:password")
	}
	return g, g.validate()
}

// withAt reads user:pass@host:port and host:port@user:pass.
func (g *Gateway) withAt(s string, decode bool) bool {
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
	user, pass, _ := strings.Cut(creds, ":")
	if decode {
		u, err1 := url.PathUnescape(user)
		p, err2 := url.PathUnescape(pass)
		if err1 == nil && err2 == nil { // otherwise the % is meant as it stands
			user, pass = u, p
		}
	}
	g.Host, g.Port, g.Username, g.Password = host, port, user, Secret(pass)
	return true
}

// withColons reads host:port, host:port:user:pass and user:pass:host:port. The
// password may hold colons.
func (g *Gateway) withColons(s string) bool {
	f := fields(s)
	if len(f) < 2 || len(f) == 3 || bareIPv6(s) {
		return false
	}
	host, port, left := hostPort(f[0], f[1])
	if len(f) == 2 {
		g.Host, g.Port = host, port
		return left
	}
	n := len(f)
	lastHost, lastPort, right := hostPort(f[n-2], f[n-1])
	switch {
	case right && (!left || sureHost(lastHost) && !sureHost(host)):
		g.Host, g.Port, g.Username, g.Password = lastHost, lastPort, f[0], Secret(strings.Join(f[1:n-2], ":"))
	case left:
		g.Host, g.Port, g.Username, g.Password = host, port, f[2], Secret(strings.Join(f[3:], ":"))
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
			if end := strings.IndexByte(s, ']'); end > 0 && isHost(s[1:end]) && (end+1 == len(s) || s[end+1] == ':') {
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

func hostPort(host, port string) (string, uint16, bool) {
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() {
			return "", 0, false
		}
	} else if strings.Contains(host, ":") {
		return "", 0, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || !isHost(host) {
		return "", 0, false
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), uint16(n), true
}

// sureHost says that s can hardly be a user name.
func sureHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || strings.Contains(s, ".") || s == "localhost"
}

// isHost says whether s is a host name (RFC 1123 section 2.1, and underscores)
// or an address without a zone.
func isHost(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Zone() == ""
	}
	if s = strings.TrimSuffix(s, "."); s == "" || len(s) > 253 {
		return false
	}
	if strings.Trim(s[strings.LastIndexByte(s, '.')+1:], digits) == "" {
		return false // neither an address nor a name
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}
