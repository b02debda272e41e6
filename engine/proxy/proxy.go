// Package proxy says what a proxy is, and reads how people write one.
//
//	socks5://bob:secret@h:1080 ─ ParseURL ──┐
//	h:1080:bob:secret          ─ ParseList ─┼─► Spec ─► Validate ─► a dialler
//	[[upstream]], [[provider]] ─ config ────┘
//	h, 192.0.2.1, [2001:db8::1]:443 ─ ParseHost, ParseHostPort
//	https://1.1.1.1/dns-query       ─ ParseServer
//
// What is valid is decided here, once: what config accepts can be dialled, and
// a list, a rule, the command line and the local proxy mean the same by a host.
// Errors are of type *Error and never quote what they were given, which may be a
// password in the wrong place.
//
// It is a leaf: it imports nothing of ours, and anything may import it.
package proxy

import (
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// The schemes of a Spec.
const (
	Direct = "direct" // no proxy
	HTTP   = "http"
	HTTPS  = "https"
	SOCKS5 = "socks5"
)

// Spec says what a proxy is. It is a value.
type Spec struct {
	Name     string // what people call it
	Scheme   string // Direct, HTTP, HTTPS, SOCKS5
	Host     string // name or address without brackets, as ParseHost gives it; "" for direct
	Port     uint16
	Username string
	Password Secret
	SNI      string         // name to ask for and verify in TLS; "" is Host
	CA       *x509.CertPool // whom TLS trusts; nil is the system's pool
	HTTP2    *bool          // https only: nil offers h2 and http/1.1, true insists on h2, false never offers it
	NoEarly  bool           // early data is never tried
}

// Addr is "host:port" as for net.Dial, "" without a host.
func (s Spec) Addr() string {
	if s.Host == "" {
		return ""
	}
	return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port)))
}

// ServerName is the name that TLS asks for and verifies.
func (s Spec) ServerName() string {
	if s.SNI != "" {
		return s.SNI
	}
	return s.Host
}

// String is the URL without the password.
func (s Spec) String() string {
	user := ""
	if s.Username != "" || s.Password != "" {
		user = url.User(s.Username).String() + ":[redacted]@"
	}
	return s.Scheme + "://" + user + s.Addr()
}

// LogValue keeps a Spec's fields out of logs.
func (s Spec) LogValue() slog.Value { return slog.StringValue(s.Name + " " + s.String()) }

// Error is a mistake in how a proxy, a host or a server is written. It does not
// quote it.
type Error struct {
	Field string // url, scheme, host, port, username, password, sni or ca
	Msg   string // which has the field's name in it
	Hint  string // what to do; may be ""
}

// Error is the message without the hint.
func (e *Error) Error() string { return e.Msg }

// Validate is nil if a dialler can use s.
func (s Spec) Validate() error {
	switch s.Scheme {
	case Direct:
		if s.Host != "" || s.Username != "" || s.Password != "" {
			return &Error{"url", "direct takes no host and no credentials", ""}
		}
	case HTTP, HTTPS, SOCKS5:
		if err := checkHost(s.Host); err != nil {
			return err
		}
		if s.Port == 0 {
			return &Error{"port", "the port is missing", "1 to 65535"}
		}
	default:
		return badScheme()
	}
	if s.SNI != "" {
		if err := checkHost(s.SNI); err != nil {
			return &Error{"sni", "sni is not a host name", "the name in the proxy's certificate, such as proxy.example.com"}
		}
	}
	return s.checkCredentials()
}

func badScheme() error {
	return &Error{"scheme", "the scheme is none of http, https, socks5", ""}
}

// CheckScheme refuses what is no proxy's scheme.
func CheckScheme(s string) error {
	switch s {
	case HTTP, HTTPS, SOCKS5:
		return nil
	}
	return badScheme()
}

// checkHost refuses what is not in the form that ParseHost gives. It does not
// allocate: identities at a vendor are checked one by one, for flows.
func checkHost(s string) error {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return errZone()
		}
		return nil
	}
	for _, c := range []byte(s) {
		if 'A' <= c && c <= 'Z' {
			return &Error{"host", "the host is not in lower case", ""}
		}
	}
	return checkName(s)
}

// The greatest lengths of credentials: RFC 1929 section 2, and a bound that keeps
// a request within what proxies read.
const (
	maxSOCKSFieldBytes = 255
	maxBasicBytes      = 4096
)

// checkCredentials refuses what the protocol cannot carry.
func (s Spec) checkCredentials() error {
	user, pass := s.Username, string(s.Password)
	isControl := func(r rune) bool { return unicode.IsControl(r) }
	switch {
	case user == "" && pass != "":
		return &Error{"password", "there is a password but no username", "give username as well"}
	case strings.ContainsFunc(user, isControl):
		return &Error{"username", "the username holds a control character, such as a tab or the end of a line", "look for what was pasted with it"}
	case strings.ContainsFunc(pass, isControl):
		return &Error{"password", "the password holds a control character, such as a tab or the end of a line", "look for what was pasted with it"}
	case s.Scheme == SOCKS5 && len(user) > maxSOCKSFieldBytes:
		return &Error{"username", "the username is longer than the 255 bytes that SOCKS5 can carry (RFC 1929)", ""}
	case s.Scheme == SOCKS5 && len(pass) > maxSOCKSFieldBytes:
		return &Error{"password", "the password is longer than the 255 bytes that SOCKS5 can carry (RFC 1929)", ""}
	case s.Scheme != SOCKS5 && strings.Contains(user, ":"):
		return &Error{"username", "the username holds a colon, which HTTP proxies cannot be given (RFC 7617)", "what follows the colon belongs in password"}
	case len(user)+len(pass) > maxBasicBytes:
		return &Error{"password", "username and password are longer than 4096 bytes", ""}
	}
	return nil
}
