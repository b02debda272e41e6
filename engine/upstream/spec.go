package upstream

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// Secret is a password. Nothing prints it by accident.
type Secret = resolve.Secret

// The schemes an upstream can have.
const (
	schemeDirect = "direct"
	schemeHTTP   = "http"
	schemeHTTPS  = "https"
	schemeSOCKS5 = "socks5"
	schemeGroup  = "group" // of NewGroup only
)

// Spec says what an upstream is. It is a value.
type Spec struct {
	Name     string // what people call it
	Scheme   string // direct, http, https, socks5; "group" is NewGroup's
	Host     string // name or address without brackets; "" for direct
	Port     uint16
	Username string
	Password Secret
	SNI      string         // name to ask for and verify in TLS; "" is Host
	CA       *x509.CertPool // whom TLS trusts; nil is the system's pool
	HTTP2    *bool          // https only: nil offers h2 and http/1.1, true insists on h2, false never offers it
	NoEarly  bool           // early data is never tried
}

// Addr is "host:port" as for net.Dial, "" for direct and groups.
func (s Spec) Addr() string {
	if s.Scheme == schemeDirect || s.Scheme == schemeGroup {
		return ""
	}
	return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port)))
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

func (s Spec) serverName() string {
	if s.SNI != "" {
		return s.SNI
	}
	return s.Host
}

// The greatest lengths RFC 1929 section 2 and RFC 1035 allow, and one for the
// Basic credentials that keeps a request within what proxies accept.
const (
	maxSOCKSFieldBytes = 255
	maxHostBytes       = 253
	maxBasicBytes      = 4096
)

// ParseURL reads scheme://user:password@host:port, where user and password
// may be percent-encoded. Schemes: direct, http (port 80 if none is given),
// https (443), socks5 and its synonym socks5h (1080); names always go to the
// proxy as names. Errors never hold the password.
func ParseURL(name, rawURL string) (Spec, error) {
	s := Spec{Name: name}
	u, err := url.Parse(rawURL)
	if err != nil {
		// url.Error quotes its input, which may hold a password.
		var ue *url.Error
		if errors.As(err, &ue) && !strings.Contains(rawURL, "@") {
			return s, fmt.Errorf("upstream URL: %w", ue.Err)
		}
		return s, errors.New("upstream URL cannot be read: write scheme://user:password@host:port, with special characters percent-encoded (@ is %40, : is %3A, / is %2F)")
	}
	s.Scheme = strings.ToLower(u.Scheme)
	if s.Scheme == "socks5h" {
		s.Scheme = schemeSOCKS5
	}
	var port uint16
	switch s.Scheme {
	case schemeDirect:
		if u.Host != "" || u.User != nil || u.Opaque != "" || strings.Trim(u.Path, "/") != "" {
			return s, errors.New("upstream URL direct:// takes nothing after the slashes")
		}
		return s, noExtras(u)
	case schemeHTTP:
		port = 80
	case schemeHTTPS:
		port = 443
	case schemeSOCKS5:
		port = 1080
	case "h3", "masque":
		return s, fmt.Errorf("upstream URL scheme %s is not in this version: use http, https, socks5 or direct", s.Scheme)
	case "":
		return s, errors.New("upstream URL has no scheme: use http://, https://, socks5:// or direct://")
	default:
		return s, fmt.Errorf("upstream URL scheme %q is unknown: use http, https, socks5 or direct", clip(u.Scheme, 32))
	}
	if err := noExtras(u); err != nil {
		return s, err
	}
	if s.Host, err = cleanHost(u.Hostname()); err != nil {
		return s, err
	}
	if s.Port, err = parsePort(u, port); err != nil {
		return s, err
	}
	s.Username = u.User.Username()
	p, _ := u.User.Password()
	s.Password = Secret(p)
	return s, s.checkCredentials()
}

// noExtras refuses what no proxy URL has; a typo there must not go unnoticed.
func noExtras(u *url.URL) error {
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || u.Opaque != "" {
		return errors.New("upstream URL has something after host:port: remove it (a /, ? or # in a password must be percent-encoded)")
	}
	return nil
}

func cleanHost(h string) (string, error) {
	h = strings.TrimSuffix(h, ".")
	if h == "" {
		return "", errors.New("upstream URL has no host")
	}
	if a, err := netip.ParseAddr(h); err == nil && a.Zone() == "" {
		return a.String(), nil
	}
	if len(h) > maxHostBytes || strings.ContainsFunc(h, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\@:[]%<>"`, r) || unicode.IsSpace(r)
	}) {
		return "", errors.New("upstream URL host is not a host name or address")
	}
	return strings.ToLower(h), nil
}

func parsePort(u *url.URL, fallback uint16) (uint16, error) {
	text := u.Port()
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("upstream URL port %q is not 1 to 65535", clip(text, 16))
	}
	return uint16(n), nil
}

// checkCredentials refuses what the protocol cannot carry.
func (s Spec) checkCredentials() error {
	user, pass := s.Username, s.Password.Reveal()
	if s.Scheme == schemeSOCKS5 {
		if len(user) > maxSOCKSFieldBytes || len(pass) > maxSOCKSFieldBytes {
			return errors.New("upstream user or password is longer than the 255 bytes that SOCKS5 can carry (RFC 1929)")
		}
		if user == "" && pass != "" {
			return errors.New("upstream URL has a password but no user")
		}
		return nil
	}
	if strings.Contains(user, ":") {
		return errors.New("upstream user holds a colon, which Basic authentication cannot carry (RFC 7617)")
	}
	if len(user)+len(pass) > maxBasicBytes {
		return errors.New("upstream user and password are too long")
	}
	if strings.ContainsFunc(user+pass, unicode.IsControl) {
		return errors.New("upstream user or password holds a control character (RFC 7617)")
	}
	return nil
}

// validate checks a Spec that did not come from ParseURL.
func (s Spec) validate() error {
	switch s.Scheme {
	case schemeDirect:
		return nil
	case schemeHTTP, schemeHTTPS, schemeSOCKS5:
	default:
		return fmt.Errorf("scheme %q is unknown", clip(s.Scheme, 32))
	}
	if s.Port == 0 {
		return errors.New("no port")
	}
	if _, err := cleanHost(s.Host); err != nil {
		return err
	}
	return s.checkCredentials()
}

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
