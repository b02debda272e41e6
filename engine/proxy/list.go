package proxy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of a list.
const (
	MaxListBytes   = 8 << 20
	MaxListProxies = 10_000
	maxListErrors  = 100 // lines that are complained about one by one
	maxLineBytes   = 16 << 10
)

// LineError is a line of a list that is no proxy. It does not quote the line,
// which may hold a password.
type LineError struct {
	Line int // from 1; of the decoded text where the list came in base64
	Text string
}

func (e LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

// ParseList reads proxies, one on a line or separated by commas, each as
//
//	host:port                  user:pass@host:port
//	host:port:user:pass        host:port@user:pass
//	user:pass:host:port        scheme://any of these, the port left out if it is the scheme's
//
// or as columns (CSV, quoted or not, or with tabs, semicolons or spaces between): host,
// port and, if there are any, user and password, in that order or with user and
// password first, with the scheme before or behind; a first row of names may say
// what the columns are. The list may come in base64. Addresses of IPv6 stand in
// brackets. In what has a scheme and an @, user and password may be
// percent-encoded. Empty lines and what follows # or ; at the start of a word
// are left out, and so are proxies that stand there twice. scheme is for those
// that have none.
//
// A line that is no proxy is skipped and told of, at most 100 times. It is an
// error if more lines are none than are: it is another kind of text then, such
// as a web page. Proxies of other kinds (socks4://, ss://) do not count as such.
// At most 10,000 proxies are read.
func ParseList(data []byte, scheme string) (proxies []Spec, skipped []LineError, err error) {
	if len(data) > MaxListBytes {
		return nil, nil, fmt.Errorf("larger than %d MiB", MaxListBytes>>20)
	}
	if err := CheckScheme(scheme); err != nil {
		return nil, nil, err
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("<")) {
		return nil, nil, errors.New("it is a web page, not a list of proxies")
	}
	l := lines{scheme: scheme, seen: map[Spec]bool{}}
	l.read(string(unwrap(data)))
	switch {
	case l.good == 0 && len(l.skipped) == 0:
		return nil, nil, errors.New("no proxies: it is empty")
	case l.good == 0:
		return nil, l.skipped, fmt.Errorf("no proxies: %w", l.skipped[0])
	case l.bad > l.good:
		return nil, l.skipped, fmt.Errorf("%d of %d lines are no proxies; the first is %w", l.bad, l.bad+l.good, l.skipped[0])
	}
	return l.proxies, l.skipped, nil
}

// unwrap undoes base64, which subscriptions come in. A plain list has dots or
// colons, which base64 has not.
func unwrap(data []byte) []byte {
	text := bytes.TrimRight(bytes.Join(bytes.Fields(data), nil), "=")
	if len(text) < 8 || bytes.ContainsAny(text, ".:,") {
		return data
	}
	for _, code := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if plain, err := code.DecodeString(string(text)); err == nil && utf8.Valid(plain) && bytes.ContainsAny(plain, ":,\t") {
			return bytes.TrimPrefix(plain, []byte("\xef\xbb\xbf"))
		}
	}
	return data
}

// lines are a list being read.
type lines struct {
	scheme    string
	header    *columns // of the columns that follow; nil if no row has named them
	seen      map[Spec]bool
	proxies   []Spec
	skipped   []LineError
	good, bad int // lines
}

func (l *lines) read(text string) {
	n := 0
	for line := range strings.SplitSeq(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text), "\n") {
		n++
		found, err := l.line(line)
		switch {
		case err != nil:
			if err != errOther {
				l.bad++
			}
			if len(l.skipped) < maxListErrors {
				l.skipped = append(l.skipped, LineError{n, err.Error()})
			}
			continue
		case len(found) > 0:
			l.good++
		}
		for _, s := range found {
			if len(l.proxies) == MaxListProxies {
				l.skipped = append(l.skipped, LineError{n, fmt.Sprintf("more than %d proxies: the rest is left out", MaxListProxies)})
				return
			}
			if !l.seen[s] {
				l.seen[s] = true
				l.proxies = append(l.proxies, s)
			}
		}
	}
}

// line reads the proxies of one line, none if it is empty or names columns.
func (l *lines) line(line string) ([]Spec, error) {
	line = strings.TrimSpace(withoutComment(line))
	switch {
	case line == "":
		return nil, nil
	case len(line) > maxLineBytes:
		return nil, errors.New("longer than any proxy")
	}
	pieces := split(line)
	if len(l.proxies) == 0 && l.header == nil {
		if l.header = headerOf(pieces); l.header != nil {
			return nil, nil
		}
	}
	if l.header != nil {
		s, err := l.header.read(pieces, l.scheme)
		return []Spec{s}, err
	}
	if len(pieces) > 1 {
		if all := l.several(pieces); all != nil {
			return all, nil
		}
		if s, ok := fromColumns(pieces, l.scheme); ok {
			return []Spec{s}, nil
		}
	} else if line = pieces[0]; strings.ContainsAny(line, " \t") {
		if s, ok := fromColumns(strings.Fields(line), l.scheme); ok {
			return []Spec{s}, nil
		}
	}
	s, err := parseProxy(line, l.scheme)
	return []Spec{s}, err
}

// several reads a line on which every piece is a whole proxy; nil if it is not.
func (l *lines) several(pieces []string) (all []Spec) {
	for _, p := range pieces {
		if p == "" {
			continue
		}
		s, err := parseProxy(p, l.scheme)
		if err != nil {
			return nil
		}
		all = append(all, s)
	}
	return all
}

// withoutComment cuts at # or ; that begins the line or follows white space
// outside quotes, and at // that begins it.
func withoutComment(line string) string {
	if strings.HasPrefix(strings.TrimSpace(line), "//") {
		return ""
	}
	begins, quoted := true, false // a word begins here; between quotes
	for i, r := range line {
		switch {
		case r == '"' && (begins || quoted || isSeparator(line[i-1]) || line[i-1] == '"'):
			quoted = !quoted
		case begins && !quoted && (r == '#' || r == ';'):
			return line[:i]
		}
		begins = unicode.IsSpace(r)
	}
	return line
}

func isSeparator(c byte) bool { return c == ',' || c == ';' || c == '\t' }

// split divides a line into its columns, without their quotes (RFC 4180). A
// separator within quotes is none.
func split(line string) (out []string) {
	for {
		piece, rest := column(line)
		out = append(out, piece)
		if rest == "" {
			return out
		}
		line = rest[1:]
	}
}

// column cuts the first column off; rest begins with the separator.
func column(line string) (piece, rest string) {
	body, quoted := strings.CutPrefix(strings.TrimLeft(line, " "), `"`)
	if quoted {
		var b strings.Builder
		for {
			part, after, closed := strings.Cut(body, `"`)
			b.WriteString(part)
			if !closed {
				break // not quoted after all
			}
			if strings.HasPrefix(after, `"`) { // an escaped quote
				b.WriteByte('"')
				body = after[1:]
				continue
			}
			if after = strings.TrimLeft(after, " "); after == "" || isSeparator(after[0]) {
				return b.String(), after
			}
			break
		}
	}
	i := strings.IndexFunc(line, func(r rune) bool { return r < utf8.RuneSelf && isSeparator(byte(r)) })
	if i < 0 {
		i = len(line)
	}
	return strings.TrimSpace(line[:i]), line[i:]
}

// columns says which column holds what, from 0; -1: none.
type columns struct{ host, port, user, pass, scheme int }

// headerOf reads a row of names, nil if it is none.
func headerOf(pieces []string) *columns {
	h, whole := columns{-1, -1, -1, -1, -1}, len(pieces) == 1
	for i, p := range pieces {
		name := strings.ToLower(strings.NewReplacer(" ", "", "_", "", "-", "").Replace(p))
		switch name {
		case "proxy":
			h.host, whole = i, true
		case "ip", "host", "hostname", "address", "ipaddress", "proxyaddress", "server", "proxyhost":
			h.host = i
		case "port", "proxyport":
			h.port = i
		case "user", "username", "login":
			h.user = i
		case "pass", "password":
			h.pass = i
		case "scheme", "protocol", "protocols", "type":
			h.scheme = i
		}
	}
	if h.host < 0 || h.port < 0 && !whole {
		return nil
	}
	return &h
}

func (h *columns) read(pieces []string, scheme string) (Spec, error) {
	at := func(i int) string {
		if i < 0 || i >= len(pieces) {
			return ""
		}
		return strings.TrimSpace(pieces[i])
	}
	if s := at(h.scheme); s != "" {
		scheme = schemeOf(s)
	}
	if h.port < 0 { // host:port in one column
		s, err := parseProxy(at(h.host), scheme)
		if err == nil && h.user >= 0 {
			s.Username, s.Password = at(h.user), Secret(at(h.pass))
			err = s.Validate()
		}
		return s, err
	}
	return specOf(scheme, at(h.host), at(h.port), at(h.user), at(h.pass))
}

// schemeOf is how a list calls a scheme.
func schemeOf(s string) string {
	switch s = strings.ToLower(s); s {
	case "socks5h", "socks":
		return SOCKS5
	}
	return s
}

func specOf(scheme, host, port, user, pass string) (Spec, error) {
	s := Spec{Scheme: scheme, Username: user, Password: Secret(pass)}
	var err error
	if s.Host, err = CleanHost(host); err != nil {
		return s, err
	}
	if s.Port, err = parsePort(port); err != nil {
		return s, err
	}
	return s, s.Validate()
}

// fromColumns reads a row without names.
func fromColumns(c []string, scheme string) (Spec, bool) {
	if len(c) == 3 || len(c) == 5 { // one is the scheme
		if CheckScheme(schemeOf(c[0])) == nil {
			scheme, c = schemeOf(c[0]), c[1:]
		} else if last := len(c) - 1; CheckScheme(schemeOf(c[last])) == nil {
			scheme, c = schemeOf(c[last]), c[:last]
		}
	}
	switch len(c) {
	case 2:
		s, err := specOf(scheme, c[0], c[1], "", "")
		return s, err == nil
	case 4:
		s, err := specOf(scheme, c[0], c[1], c[2], c[3])
		if other, bad := specOf(scheme, c[2], c[3], c[0], c[1]); bad == nil && (err != nil || sureHost(other.Host) && !sureHost(s.Host)) {
			return other, true
		}
		return s, err == nil
	}
	return Spec{}, false
}
