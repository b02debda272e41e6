package listener

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// serveConnect carries the tunnel that r asks for (RFC 9110 section 9.3.6).
func (s *server) serveConnect(ctx context.Context, app *client, r *request) {
	t, err := targetOfAuthority(string(r.uri), 0)
	if err == nil && (r.length > 0 || r.coded) {
		err = errors.New("a CONNECT request has no body")
	}
	if err != nil {
		app.refuse(errorPage(http.StatusBadRequest, "", err.Error()))
		return
	}
	p := &connectPending{app: app, target: t}
	s.opts.Handler.HandleStream(ctx, newFlow(flow.TCP, flow.HTTP, app.addr(), app.door(), t), p)
	p.Reject(flow.Unreachable) // no effect, unless the Handler forgot
}

// targetOfAuthority parses host:port, an IPv6 address in brackets. A standard
// port other than 0 may be left out (RFC 3986 section 3.2.3).
func targetOfAuthority(authority string, standard uint16) (flow.Target, error) {
	host, port := authority, ""
	colon := strings.LastIndexByte(authority, ':')
	if colon > strings.LastIndexByte(authority, ']') {
		host, port = authority[:colon], authority[colon+1:]
	}
	if literal, ok := strings.CutPrefix(host, "["); ok {
		literal, closed := strings.CutSuffix(literal, "]")
		a, err := netip.ParseAddr(strings.Replace(literal, "%25", "%", 1)) // a zone, as RFC 6874 writes it
		if !closed || err != nil || !a.Is6() {
			return flow.Target{}, errors.New("what is in brackets is no IPv6 address")
		}
		host = a.String()
	} else if strings.IndexByte(host, ':') >= 0 {
		return flow.Target{}, errors.New("want host:port, an IPv6 address in brackets")
	}
	if port == "" {
		if standard == 0 {
			return flow.Target{}, errors.New("want host:port")
		}
		return newTarget(host, standard)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return flow.Target{}, errors.New("want a port from 1 to 65535")
	}
	return newTarget(host, uint16(n))
}

// connectPending is a CONNECT request that has not been answered yet.
type connectPending struct {
	app     *client
	target  flow.Target
	decided atomic.Bool
}

var (
	_ flow.Pending = (*connectPending)(nil)
	_ flow.Spoken  = (*connectPending)(nil)
)

// Spoken implements flow.Spoken.
func (p *connectPending) Spoken() []byte { return p.app.spoken() }

// Accept implements flow.Pending.
func (p *connectPending) Accept() (flow.StreamConn, error) {
	if p.decided.Swap(true) {
		return nil, fmt.Errorf("accept connect: %w", net.ErrClosed)
	}
	p.app.SetWriteDeadline(time.Now().Add(flow.SayWithin))
	if _, err := p.app.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		p.app.Close()
		return nil, fmt.Errorf("answer connect request: %w", err)
	}
	return p.app.stream(), nil
}

// Reject implements flow.Pending.
func (p *connectPending) Reject(reason flow.Reason) {
	if p.decided.Swap(true) {
		return
	}
	e := &refusal{target: p.target, reason: reason}
	p.app.refuse(errorPage(e.status(), e.proxyStatus(), e.Error()))
}

// refusal is why a target was not reached.
type refusal struct {
	target flow.Target
	reason flow.Reason
}

func (e *refusal) Error() string {
	why := "the flow was refused"
	switch e.reason {
	case flow.Refused:
		why = "the target, or the upstream proxy, refused the connection"
	case flow.Unreachable:
		why = "there is no way there, or the name does not exist"
	case flow.TimedOut:
		why = "nobody answered in time"
	case flow.Forbidden:
		why = "a rule forbids it, or traffic is blocked; \"atlantic why " + e.target.Host() + "\" tells more"
	}
	return e.target.String() + ": " + e.reason.String() + ": " + why
}

func (e *refusal) status() int {
	switch e.reason {
	case flow.TimedOut:
		return http.StatusGatewayTimeout
	case flow.Forbidden:
		return http.StatusForbidden
	}
	return http.StatusBadGateway
}

// proxyStatus is the error as RFC 9209 section 2.3 names it.
func (e *refusal) proxyStatus() string {
	switch e.reason {
	case flow.Refused:
		return "connection_refused"
	case flow.TimedOut:
		return "connection_timeout"
	case flow.Forbidden:
		return "http_request_denied"
	}
	return "destination_unavailable"
}

// errorPage is a whole response that closes the connection.
func errorPage(status int, proxyStatus, text string) []byte {
	var page bytes.Buffer
	text += "\n"
	fmt.Fprintf(&page, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n", status, http.StatusText(status), len(text))
	if proxyStatus != "" {
		fmt.Fprintf(&page, "Proxy-Status: atlantic; error=%s\r\n", proxyStatus)
	}
	fmt.Fprintf(&page, "\r\n%s", text)
	return page.Bytes()
}
