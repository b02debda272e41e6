package listener

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// request is the head of an app's request. Where a head could be understood in
// two ways it is refused, and what is passed on is written anew, but for the
// path and query, which a proxy must not change (RFC 9110 section 7.7).
type request struct {
	head
	meaning
	method    []byte
	uri       []byte // the request-target, as it came
	authority string // of the URL, as Host tells it
	path      []byte // what the target is asked for: path and query as they came
	to        flow.Target
	old       bool // HTTP/1.0
}

// badRequest is why a request is not passed on.
type badRequest struct {
	status int
	text   string
}

func (e *badRequest) Error() string { return e.text }

func malformed(format string, args ...any) error {
	return &badRequest{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// understand parses what head has read.
func (r *request) understand() error {
	if err := r.parse(true); err != nil {
		return malformed("malformed request: %v", err)
	}
	r.meaning = r.scan()
	method, rest, _ := bytes.Cut(r.start, []byte(" "))
	uri, version, ok := bytes.Cut(rest, []byte(" "))
	switch {
	case !ok || !isToken(method) || len(uri) == 0 || !clean(uri, true) || bytes.IndexByte(uri, '\t') >= 0:
		return malformed("malformed request line")
	case string(version) == "HTTP/1.0":
	case len(version) != len("HTTP/1.1") || !bytes.HasPrefix(version, []byte("HTTP/1.")):
		return &badRequest{http.StatusHTTPVersionNotSupported, "the local proxy speaks HTTP/1.1"}
	}
	r.method, r.uri, r.old = method, uri, version[len(version)-1] == '0'
	return r.checkBody()
}

// checkBody insists that there is one way only to tell where the body ends
// (RFC 9112 sections 6.1 to 6.3 and 11.2).
func (r *request) checkBody() error {
	switch {
	case r.hosts > 1:
		return malformed("malformed request: more than one Host field")
	case r.lengths || r.empty:
		return malformed("malformed request: Content-Length is no number, or several")
	case r.odd:
		return &badRequest{http.StatusNotImplemented, "the only transfer coding of a request that passes is chunked"}
	case r.coded && r.length >= 0:
		return malformed("malformed request: both Content-Length and Transfer-Encoding")
	case r.coded && r.old:
		return malformed("malformed request: HTTP/1.0 has no Transfer-Encoding")
	}
	return nil
}

// hasBody says whether bytes follow the head that belong to the request.
func (r *request) hasBody() bool { return r.chunked || r.length > 0 }

// isA says whether the method is one of these.
func (r *request) isA(methods ...string) bool {
	for _, m := range methods {
		if string(r.method) == m {
			return true
		}
	}
	return false
}

// repeatable says that the request may reach a target twice: it is idempotent
// (RFC 9110 section 9.2.2), and is here still.
func (r *request) repeatable() bool {
	return !r.hasBody() && r.isA("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
}

// last says that the app sends no other request by this connection.
func (r *request) last() bool { return r.close || r.old && !r.keepAlive }

// locate finds where a plain HTTP request leads.
func (r *request) locate() error {
	url := r.uri
	colon := bytes.Index(url, []byte("://"))
	if colon < 0 {
		return malformed("this is a proxy, not a web site: set it as the HTTP or SOCKS5 proxy of an app")
	}
	if !is(url[:colon], "http") {
		return malformed("%s:// does not go through an HTTP proxy this way: use CONNECT", url[:colon])
	}
	if r.hosts == 0 && !r.old {
		return malformed("malformed request: no Host field")
	}
	url = url[colon+len("://"):]
	authority := url
	if end := bytes.IndexAny(url, "/?#"); end >= 0 {
		authority = url[:end]
	}
	r.path = url[len(authority):]
	switch {
	case len(r.path) == 0 && r.isA(http.MethodOptions):
		r.path = []byte("*") // RFC 9112 section 3.2.4
	case len(r.path) == 0 || r.path[0] != '/':
		r.path = append([]byte("/"), r.path...)
	}
	authority = authority[bytes.LastIndexByte(authority, '@')+1:] // no user information goes out (RFC 9110 section 4.2.4)
	var err error
	if r.to, err = targetOfAuthority(string(authority), 80); err != nil {
		return malformed("%v", err)
	}
	r.authority = strings.TrimSuffix(string(authority), ":")
	if strings.ContainsFunc(r.authority, func(c rune) bool { return c >= 0x80 }) {
		r.authority = r.to.Name + portOf(r.authority) // as resolvers know it (RFC 5890)
	}
	if zone := strings.IndexByte(r.authority, '%'); zone >= 0 { // means something here only (RFC 6874 section 4)
		r.authority = r.authority[:zone] + r.authority[strings.IndexByte(r.authority, ']'):]
	}
	return nil
}

// portOf is ":port" at the end of an authority that is a name, "" if there is
// none.
func portOf(authority string) string {
	if colon := strings.LastIndexByte(authority, ':'); colon >= 0 {
		return authority[colon:]
	}
	return ""
}

// append appends the head as the target shall see it.
func (r *request) append(b []byte) []byte {
	b = append(append(b, r.method...), ' ')
	b = append(append(b, r.path...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, r.authority...), "\r\n"...)
	b = r.appendFields(b)
	// We understand trailers, and say so whether the app has said that it is for
	// us to say or not (RFC 9110 section 10.1.4).
	switch {
	case r.websocket && r.trailers:
		b = append(b, "Connection: Upgrade, TE\r\nUpgrade: websocket\r\nTE: trailers\r\n"...)
	case r.websocket:
		b = append(b, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	case r.trailers:
		b = append(b, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	switch {
	case r.chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case r.length >= 0:
		b = fmt.Appendf(b, "Content-Length: %d\r\n", r.length)
	}
	return append(b, "\r\n"...)
}

// response is the head of a target's response.
type response struct {
	head
	meaning
	status int
	reason []byte
	old    bool // HTTP/1.0
}

var (
	errNoHTTP = errors.New("the target's answer is not HTTP/1")
	errLength = errors.New("the target's answer says of several lengths that they are its own")
)

// understand parses what head has read, as browsers do where servers are sloppy.
func (r *response) understand() error {
	_ = r.parse(false) // leaves out what is wrong
	r.meaning = r.scan()
	version, rest, _ := bytes.Cut(r.start, []byte(" "))
	rest = bytes.TrimLeft(rest, " ")
	r.old = string(version) == "HTTP/1.0" || string(version) == "ICY" // ICY: SHOUTcast
	if !r.old && !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(rest) < 3 {
		return errNoHTTP
	}
	r.status = 0
	for _, c := range rest[:3] {
		if c < '0' || c > '9' {
			return errNoHTTP
		}
		r.status = 10*r.status + int(c-'0')
	}
	r.reason = bytes.TrimSpace(rest[3:])
	switch {
	case len(rest) > 3 && rest[3] != ' ':
		return errNoHTTP
	case r.status < 100:
		return fmt.Errorf("the target answered with status %d", r.status)
	case !clean(r.reason, false):
		return errNoHTTP
	case r.lengths && !r.chunked && len(r.codings) == 0:
		return errLength
	}
	return nil
}

// hasBodyAt says whether a response to method has a body (RFC 9112 section 6.3).
func (r *response) hasBodyAt(method string) bool {
	return method != http.MethodHead && r.status >= 200 && r.status != http.StatusNoContent && r.status != http.StatusNotModified
}

// append appends the head as the app shall see it, but for framing and the
// empty line.
func (r *response) append(b []byte) []byte {
	b = fmt.Appendf(b, "HTTP/1.1 %03d ", r.status)
	b = append(append(b, r.reason...), "\r\n"...)
	return r.appendFields(b)
}
