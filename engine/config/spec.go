package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Spec is the upstream as it is dialled. It reads the file that CA names; the
// error is a *proxy.Error, or says what is wrong with that file.
func (u Upstream) Spec() (proxy.Spec, error) {
	s, err := u.spec()
	if err == nil {
		s.CA, err = readCA(u.CA)
	}
	return s, err
}

// spec is Spec without the certificates.
func (u Upstream) spec() (proxy.Spec, error) {
	s, err := proxy.ParseURL(u.Name, u.URL)
	if err != nil {
		return s, err
	}
	if u.Username != "" {
		s.Username = u.Username
	}
	if u.Password != "" {
		s.Password = u.Password
	}
	s.NoEarly = !u.EarlyData
	if u.SNI != "" {
		if s.SNI, err = proxy.CleanHost(u.SNI); err != nil {
			return s, &proxy.Error{Field: "sni", Msg: "sni is not a host name", Hint: "the name in the proxy's certificate, such as proxy.example.com"}
		}
	}
	return s, s.Validate()
}

// errCA is what is wrong with a file of certificates.
type errCA struct{ error }

func (e errCA) Unwrap() error { return e.error }

// readCA reads whom TLS trusts; nil, the system's, if there is no file.
func readCA(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, _, err := readFile(file, maxFileBytes)
	if err != nil {
		return nil, errCA{fmt.Errorf("ca: %w", withoutPath(err))}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errCA{errors.New("ca: the file holds no certificate in PEM form")}
	}
	return pool, nil
}

// splitURL takes the credentials out of an upstream's url, if it can be read.
func splitURL(s string) (plain, user string, pass proxy.Secret, err error) {
	spec, err := proxy.ParseURL("", s)
	if err != nil {
		return "", "", "", err
	}
	plain = spec.Scheme + "://" + spec.Addr()
	if !hasPort(s) {
		plain = strings.TrimSuffix(plain, fmt.Sprint(":", spec.Port))
	}
	return plain, spec.Username, spec.Password, nil
}

func hasPort(s string) bool { u, err := url.Parse(s); return err == nil && u.Port() != "" }

// checkListURL takes the web address or the path of a list. Its error does not
// quote it: it may hold a token.
func checkListURL(s string) error {
	if filepath.IsAbs(s) {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "" {
		return errors.New("url is neither a web address nor an absolute path")
	}
	if _, _, _, err := proxy.ParseHostPort(u.Host, 443); err != nil {
		return err
	}
	return nil
}

// listSecret says whether a list's url holds what may be a token: credentials, a
// query, or a part of the path that is long, or has letters and digits.
func listSecret(s string) bool {
	u, err := url.Parse(s)
	if s == "" || filepath.IsAbs(s) || err != nil {
		return false // no web address
	}
	for part := range strings.SplitSeq(u.Path, "/") {
		part = strings.TrimSuffix(part, filepath.Ext(part))
		mixed := len(part) >= 8 && strings.ContainsAny(part, "0123456789") && strings.ToUpper(part) != strings.ToLower(part)
		if len(part) >= 16 || mixed {
			return true
		}
	}
	return u.User != nil || u.RawQuery != "" || u.Fragment != ""
}

// shownListURL is a list's url as the configuration shows it: of a web address
// the host alone, since a token may look like any word.
func shownListURL(s string) string {
	u, err := url.Parse(s)
	switch {
	case filepath.IsAbs(s) || s == "":
		return s
	case err != nil:
		return "redacted"
	case u.User == nil && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == "":
		return s
	}
	return u.Scheme + "://" + u.Host + "/redacted"
}

// checkUpstreamName refuses what no upstream, provider or group can be called.
func checkUpstreamName(name string) error {
	switch {
	case name == "":
		return errors.New("has no name")
	case slices.Contains([]string{"auto", "direct", "block"}, strings.ToLower(name)):
		return fmt.Errorf("the name %q is reserved", name)
	case !IsName(name):
		return errors.New("the name has more than 64 bytes, or other characters than letters, digits, '-' and '_'")
	case name[0] == '-':
		return errors.New("the name begins with '-', as the options of a command do")
	}
	return nil
}

// IsName says whether s looks like a name, and so can be shown: no URL does, nor
// what lacks only the scheme.
func IsName(s string) bool {
	return len(s) <= 64 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}
