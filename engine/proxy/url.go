package proxy

import (
	"net"
	"net/url"
	"strconv"
	"strings"
)

// urlForm is how a proxy is written.
const urlForm = `such as "socks5://host:1080", "http://host:8080", "https://host:443" or "direct://"; scheme://user:password@host:port with credentials`

// ParseURL reads scheme://user:password@host:port, where user and password may
// be percent-encoded. Schemes: direct, http (port 80 if none is given), https
// (443), socks5 and its synonym socks5h (1080); names always go to the proxy as
// names. What it returns is valid.
func ParseURL(name, rawURL string) (Spec, error) {
	s := Spec{Name: name}
	if rawURL == "" {
		return s, &Error{"url", "the url is missing", urlForm}
	}
	u, err := url.Parse(rawURL) // whose error quotes the URL
	if err != nil {
		return s, &Error{"url", "the url cannot be read", urlForm + ". Special characters are percent-encoded: @ is %40, : is %3A, / is %2F"}
	}
	var port uint16
	switch s.Scheme = strings.ToLower(u.Scheme); s.Scheme {
	case Direct:
		if u.Host != "" || u.User != nil || u.Opaque != "" || strings.Trim(u.Path, "/") != "" {
			return s, &Error{"url", "direct:// takes nothing after the slashes", ""}
		}
		return s, noExtras(u)
	case HTTP:
		port = 80
	case HTTPS:
		port = 443
	case SOCKS5, "socks5h":
		s.Scheme, port = SOCKS5, 1080
	case "h3", "masque":
		return s, &Error{"url", "the scheme " + s.Scheme + " is not in this version", urlForm}
	case "":
		return s, &Error{"url", "the url has no scheme", urlForm}
	default: // not quoted: host:port:user:password has one too, and it may be a user's name
		return s, &Error{"url", "the scheme of the url is none of http, https, socks5, direct", urlForm}
	}
	if err := noExtras(u); err != nil {
		return s, err
	}
	if s.Host, s.Port, err = hostPortOf(u, port); err != nil {
		return s, err
	}
	s.Username = u.User.Username()
	pass, _ := u.User.Password()
	s.Password = Secret(pass)
	return s, s.Validate()
}

// hostPortOf is where u leads.
func hostPortOf(u *url.URL, port uint16) (string, uint16, error) {
	if strings.Contains(u.Host, "%") {
		return "", 0, errZone() // of an address: in a name, url.Parse has decoded it
	}
	name, addr, port, err := ParseHostPort(u.Host, port)
	if addr.IsValid() {
		name = addr.String()
	}
	return name, port, err
}

// noExtras refuses what no proxy's URL has; a typo there must not go unnoticed.
func noExtras(u *url.URL) error {
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || u.Opaque != "" {
		return &Error{"url", "the url has something after host:port", "remove it (a /, ? or # in a password is percent-encoded)"}
	}
	return nil
}

// Server is a DNS server.
type Server struct {
	Scheme string // https (RFC 8484), tls (RFC 7858), tcp, udp
	Host   string // as ParseHost gives it
	Port   uint16
	Path   string // of https, with its query; may hold an account's token
}

// dnsPort is the standard port of a scheme, 0 if there is no such scheme.
func dnsPort(scheme string) uint16 {
	switch scheme {
	case "https":
		return 443
	case "tls":
		return 853
	case "tcp", "udp":
		return 53
	}
	return 0
}

const (
	dnsPath = "/dns-query" // RFC 8484 section 4.1.1, by custom
	dnsForm = `such as "https://1.1.1.1/dns-query", "tls://9.9.9.9", "tcp://1.1.1.1", "udp://1.1.1.1" or "1.1.1.1"`
)

// ParseServer reads a DNS server: a URL with one of its schemes, or host[:port]
// of an address, which means udp.
func ParseServer(s string) (Server, error) {
	if !strings.Contains(s, "://") {
		_, addr, port, err := ParseHostPort(s, 53)
		if err == nil && !addr.IsValid() {
			err = &Error{"url", "a DNS server without a scheme is an address", dnsForm}
		}
		return Server{Scheme: "udp", Host: addr.String(), Port: port}, err
	}
	u, err := url.Parse(s)
	if err != nil {
		return Server{}, &Error{"url", "the DNS server's url cannot be read", dnsForm}
	}
	out := Server{Scheme: strings.ToLower(u.Scheme), Path: u.EscapedPath()}
	switch port := dnsPort(out.Scheme); {
	case port == 0:
		return out, &Error{"url", "the scheme is not one of a DNS server", dnsForm}
	case u.User != nil:
		return out, &Error{"url", "a DNS server takes no credentials", dnsForm}
	case u.Fragment != "":
		return out, &Error{"url", "the DNS server's url has a fragment", dnsForm}
	case out.Scheme != "https" && (strings.Trim(u.Path, "/") != "" || u.RawQuery != ""):
		return out, &Error{"url", "a DNS server has a path with https:// only", dnsForm}
	default:
		if out.Host, out.Port, err = hostPortOf(u, port); err != nil {
			return out, err
		}
	}
	if out.Scheme != "https" {
		out.Path = ""
		return out, nil
	}
	if out.Path == "" {
		out.Path = dnsPath
	}
	if u.RawQuery != "" {
		out.Path += "?" + u.RawQuery
	}
	return out, nil
}

// Addr is "host:port" as for net.Dial.
func (s Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

// URL is what ParseServer reads.
func (s Server) URL() string { return s.base() + s.Path }

// String is the URL without what may be an account's token.
func (s Server) String() string {
	if s.Path != "" && s.Path != dnsPath {
		return s.base() + "/redacted"
	}
	return s.URL()
}

func (s Server) base() string {
	host := s.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if s.Port != dnsPort(s.Scheme) {
		host = s.Addr()
	}
	return s.Scheme + "://" + host
}
