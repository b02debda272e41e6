package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// upstreamURL is an upstream's url taken apart.
type upstreamURL struct {
	url, scheme        string // url has no credentials
	username, password string
}

// parseUpstreamURL checks an upstream's url. Errors never repeat it: it may
// hold a password.
func parseUpstreamURL(s string) (upstreamURL, error) {
	if s == "" {
		return upstreamURL{}, errors.New("has no url")
	}
	u, err := url.Parse(s)
	if err != nil {
		return upstreamURL{}, errors.New("url is malformed (special characters of a password are written %XX)")
	}
	out := upstreamURL{scheme: strings.ToLower(u.Scheme)}
	switch out.scheme {
	case "direct":
		if u.Host != "" || u.Opaque != "" || strings.Trim(u.Path, "/") != "" {
			return out, errors.New("url direct:// takes no host")
		}
		out.url = "direct://"
		if u.User != nil {
			return out, errors.New("a direct upstream takes no credentials")
		}
		return out, nil
	case "http", "https", "socks5", "socks5h":
	case "h3", "masque":
		return out, fmt.Errorf("scheme %s is not in this version", out.scheme)
	case "":
		return out, errors.New("url has no scheme")
	default:
		return out, fmt.Errorf("scheme %q is not known", clip(out.scheme))
	}
	if u.Opaque != "" || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return out, errors.New("url has more than scheme, host and port")
	}
	if err := checkHostPort(u); err != nil {
		return out, err
	}
	if u.User != nil {
		out.username = u.User.Username()
		out.password, _ = u.User.Password()
	}
	out.url = out.scheme + "://" + strings.ToLower(u.Host)
	return out, nil
}

func checkHostPort(u *url.URL) error {
	if !isHost(u.Hostname()) {
		return errors.New("url has no valid host")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return errors.New("url's port is not from 1 to 65535")
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return errors.New("url's port is empty")
	}
	return nil
}

// checkDNSServer takes what engine/dns takes as a server.
func checkDNSServer(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if _, err := netip.ParseAddrPort(s); err == nil {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%q is not a DNS server", clip(s))
	}
	if u.User != nil {
		return errors.New("a DNS server takes no credentials")
	}
	switch u.Scheme {
	case "https":
	case "tls", "tcp", "udp":
		if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return fmt.Errorf("a %s:// server has no path", u.Scheme)
		}
	default:
		return fmt.Errorf("scheme %q is not one for DNS", clip(u.Scheme))
	}
	if u.Fragment != "" {
		return fmt.Errorf("%q has a fragment", clip(s))
	}
	return checkHostPort(u)
}

// isHost takes an address or a name.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return s != "" && len(s) <= 253 && badDomain(s) == ""
}

// badDomain tells what to do about a bad name, "" if it is good.
func badDomain(s string) string {
	name := strings.TrimSuffix(strings.TrimPrefix(s, "."), ".")
	if strings.HasPrefix(s, "*.") {
		return fmt.Sprintf("use domain_suffix = [%q]", clip(s[2:]))
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return "use cidr for addresses"
	}
	if len(name) > 253 || strings.ContainsAny(name, "/:@*?#[]\\\"' \t\r\n\x00") {
		return `only the name, such as "example.com"`
	}
	for _, r := range name {
		if r < 0x80 && r != '.' && r != '-' && r != '_' && !(r >= '0' && r <= '9') && !(r|0x20 >= 'a' && r|0x20 <= 'z') {
			return "names have letters, digits, '-' and '_'"
		}
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "parts between dots have 1 to 63 bytes"
		}
	}
	return ""
}

func checkUpstreamName(name string) error {
	switch {
	case name == "":
		return errors.New("has no name")
	case slices.Contains([]string{"auto", "direct", "block"}, name):
		return fmt.Errorf("the name %q is reserved", name)
	case len(name) > 64:
		return errors.New("the name is longer than 64 bytes")
	}
	for _, r := range name {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
		if !ok {
			return fmt.Errorf("the name %q has other characters than letters, digits, '-' and '_'", clip(name))
		}
	}
	return nil
}
