package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	maxReplyBytes = 16 << 10 // of all heads together, so that 1xx answers are bounded too
	maxTextBytes  = 160      // of a proxy's own words in an error
	maxWords      = 16       // header fields that are kept of one
	pageWait      = 250 * time.Millisecond
)

const (
	hintNotProxy = "it answered like a web server, not a proxy: check host and port"
	hintPortal   = "this network may want you to log in first (captive portal): open a web page in a browser"
)

// reply is the head of an answer to CONNECT.
type reply struct {
	status int
	reason string
	html   bool
	body   bool // it announces content, which no proxy's 2xx to CONNECT has (RFC 9110 section 9.3.6)
	// The proxy's own words about a failure, as far as it said any.
	proxyStatus string            // Proxy-Status (RFC 9209)
	message     string            // X-Error-Description, x-brd-err-msg …
	words       map[string]string // the fields of a failure that may tell more; names in lower case
	logins      []string          // the ways to authenticate that it offers
}

func errHeadTooLong() error {
	return fault(Protocol, fmt.Errorf("CONNECT: the answer's head is longer than %d KiB", maxReplyBytes>>10), hintNotProxy)
}

// headCut describes a head that ended early.
func headCut(got []byte, err error) error {
	if len(got) > 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return fault(Protocol, fmt.Errorf("CONNECT: the answer ended after %d bytes", len(got)), "")
	}
	return err
}

// plausible looks at the first bytes, so that a server that speaks something
// else is recognised at once and not when time is up.
func plausible(b []byte) error {
	const want = "HTTP/1."
	n := min(len(b), len(want))
	if string(b[:n]) == want[:n] {
		return nil
	}
	switch {
	case b[0] == 0x15 || b[0] == 0x16: // a TLS alert or handshake record
		return fault(Protocol, errors.New("CONNECT answered with TLS"), "the proxy speaks TLS: use https:// instead of http://")
	case b[0] == 5 || b[0] == 4 || b[0] == 0:
		return fault(Protocol, errors.New("CONNECT answered with SOCKS"), "the proxy speaks SOCKS5: use socks5://")
	}
	return fault(Protocol, fmt.Errorf("CONNECT answered %q, which is not HTTP", clip(string(b[:min(len(b), 40)]), 40)), hintNotProxy)
}

// headEnd is where the head in b ends, -1 if it does not. Only ends after from
// are of interest. A bare LF ends a line too (RFC 9112 section 2.2).
func headEnd(b []byte, from int) int {
	for i := max(from, 1); i < len(b); i++ {
		if b[i] != '\n' {
			continue
		}
		if b[i-1] == '\n' || i >= 2 && b[i-1] == '\r' && b[i-2] == '\n' {
			return i + 1
		}
	}
	return -1
}

// shortestRest is the least number of bytes that could complete the head in b,
// 0 if it is complete.
func shortestRest(b []byte) int {
	const least = len("HTTP/1.1 200\n\n")
	switch {
	case len(b) < least:
		return least - len(b)
	case headEnd(b, len(b)-1) == len(b):
		return 0
	case b[len(b)-1] == '\n', bytes.HasSuffix(b, []byte("\n\r")):
		return 1
	}
	return 2
}

// parseReply reads a head: a status line and header fields.
func parseReply(head []byte) (reply, error) {
	line, rest, _ := strings.Cut(string(head), "\n")
	line = strings.TrimSuffix(line, "\r")
	var r reply
	if len(line) < 12 || !strings.HasPrefix(line, "HTTP/1.") || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return r, badStatusLine(line)
	}
	for _, d := range []byte(line[9:12]) {
		if d < '0' || d > '9' {
			return r, badStatusLine(line)
		}
		r.status = r.status*10 + int(d-'0')
	}
	if r.status < 100 {
		return r, badStatusLine(line)
	}
	r.reason = clip(line[12:], maxTextBytes)
	for rest != "" {
		line, rest, _ = strings.Cut(rest, "\n")
		if name, value, ok := strings.Cut(line, ":"); ok {
			r.field(strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value))
		}
	}
	return r, nil
}

func badStatusLine(line string) error {
	return fault(Protocol, fmt.Errorf("CONNECT answered %q, which is not a status line", clip(line, 40)), hintNotProxy)
}

// field notes a header field that says something about a failure.
func (r *reply) field(name, value string) {
	if r.status >= 300 && len(r.words) < maxWords && (strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "proxy-") || name == "retry-after") {
		if r.words == nil {
			r.words = make(map[string]string)
		}
		r.words[name] = clip(value, maxTextBytes)
	}
	switch name {
	case "content-type":
		r.html = strings.HasPrefix(strings.ToLower(value), "text/html")
	case "content-length":
		r.body = r.body || strings.Trim(value, "0") != ""
	case "transfer-encoding":
		r.body = true
	case "proxy-authenticate", "www-authenticate":
		r.logins = appendLogins(r.logins, value)
	case "proxy-status":
		r.proxyStatus = clip(value, maxTextBytes)
	case "x-error-description", "x-brd-err-msg", "x-luminati-error":
		if r.message == "" {
			r.message = clip(value, maxTextBytes)
		}
	}
}

// appendLogins adds the authentication schemes in a field with challenges (RFC
// 9110 section 11.6.1), as far as they are known: the commas in it are also
// between parameters.
func appendLogins(have []string, value string) []string {
	quoted := false
	for part := range strings.FieldsFuncSeq(value, func(r rune) bool {
		quoted = quoted != (r == '"')
		return r == ',' && !quoted
	}) {
		word, _, _ := strings.Cut(strings.TrimSpace(part), " ")
		for _, known := range [...]string{"Basic", "Digest", "NTLM", "Negotiate", "Kerberos", "Bearer"} {
			if strings.EqualFold(word, known) && !slices.Contains(have, known) {
				have = append(have, known)
			}
		}
	}
	return have
}

// text is the answer in words.
func (r *reply) text() error {
	s := fmt.Sprintf("CONNECT answered %d", r.status)
	if r.reason != "" {
		s += " " + r.reason
	}
	switch {
	case r.message != "":
		s += ": " + r.message
	case r.proxyStatus != "":
		s += ": " + r.proxyStatus
	}
	return errors.New(s)
}

// judge maps a final answer to nil or an *Error.
func (r *reply) judge() error {
	err := r.sort()
	if e := (*Error)(nil); errors.As(err, &e) {
		e.Status, e.words = r.status, r.words
	}
	return err
}

// pageLike says that the head of a success is that of a page. It may be a web
// server's, or noise that some proxies make and that RFC 9110 section 9.3.6 has
// us ignore; either mark alone is noise.
func (r *reply) pageLike() bool {
	return r.status >= 200 && r.status < 300 && r.html && r.body
}

// page says that what follows the head is a page, and not a tunnel's first
// bytes or none: a page follows at once.
func (a *answer) page() bool {
	a.g.readBy(time.Now().Add(pageWait))
	defer a.g.readBy(a.full)
	var b [64]byte
	n, _ := a.peek(b[:])
	text := bytes.TrimLeft(b[:n], "\ufeff \t\r\n")
	if size, rest, ok := bytes.Cut(text, []byte("\n")); ok && len(bytes.Trim(size, "0123456789abcdefABCDEF\r")) == 0 {
		text = rest // in chunks
	}
	return bytes.HasPrefix(text, []byte("<"))
}

func (r *reply) sort() error {
	switch {
	case r.pageLike():
		return fault(Protocol, fmt.Errorf("%w with a web page", r.text()), hintNotProxy)
	case r.status >= 200 && r.status < 300:
		return nil
	case r.status == 407 && len(r.logins) > 0 && !slices.Contains(r.logins, "Basic"):
		return fault(Auth, fmt.Errorf("%w, and offers %s alone", r.text(), strings.Join(r.logins, " and ")),
			"only Basic is spoken here: ask for that, or for SOCKS5, or put a proxy before it that speaks "+r.logins[0])
	case r.status == 407, r.status == 401:
		return fault(Auth, r.text(), hintAuth)
	case r.proxyStatus != "", r.message != "": // only proxies say these
		return targetFault(r.reasonOf(), r.text())
	case r.status >= 300 && r.status < 400, r.status == 511:
		return fault(Protocol, r.text(), hintPortal)
	case r.status == 403, r.status == 500, r.status == 502, r.status == 503, r.status == 504:
		// 500 is what tinyproxy says when it cannot reach the target.
		return targetFault(r.reasonOf(), r.text())
	case r.status == 429:
		return fault(Refused, r.text(), "the proxy limits how often it may be used: wait, or ask its provider")
	case r.html, r.status == 400, r.status == 404, r.status == 405, r.status == 501:
		return fault(Protocol, r.text(), hintNotProxy)
	}
	return fault(Protocol, r.text(), "")
}

// reasonOf reads Proxy-Status' error (RFC 9209 section 2.3), else the status.
func (r *reply) reasonOf() flow.Reason {
	switch s := r.proxyStatus; {
	case strings.Contains(s, "connection_refused"), strings.Contains(s, "connection_terminated"):
		return flow.Refused
	case strings.Contains(s, "timeout"):
		return flow.TimedOut
	case strings.Contains(s, "dns_error"), strings.Contains(s, "destination_"):
		return flow.Unreachable
	case strings.Contains(s, "denied"), strings.Contains(s, "prohibited"):
		return flow.Forbidden
	}
	switch r.status {
	case 403:
		return flow.Forbidden
	case 504:
		return flow.TimedOut
	case 502:
		return flow.Refused
	}
	return flow.Unreachable
}
