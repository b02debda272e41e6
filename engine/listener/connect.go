package listener

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// serveHTTP carries an HTTP connection until it ends. CONNECT as the first
// request, by far the most common, is answered here without net/http's server;
// all else is web's.
func (s *server) serveHTTP(ctx context.Context, app *client) {
	const method = "CONNECT "
	start, err := app.buf.Peek(len(method))
	if err != nil {
		app.Close()
		return
	}
	if string(start) != method {
		s.web.serve(app)
		return
	}
	r, err := http.ReadRequest(app.buf)
	if err != nil {
		app.refuse(errorPage(http.StatusBadRequest, "", "malformed CONNECT request: "+err.Error()))
		return
	}
	s.serveConnect(ctx, app, r)
}

// serveConnect carries the tunnel that r asks for (RFC 9110 section 9.3.6).
func (s *server) serveConnect(ctx context.Context, app *client, r *http.Request) {
	t, err := targetOfAuthority(r.RequestURI, 0)
	if err == nil && (r.ContentLength != 0 || len(r.TransferEncoding) > 0) {
		err = fmt.Errorf("a CONNECT request has no body")
	}
	if err != nil {
		app.refuse(errorPage(http.StatusBadRequest, "", err.Error()))
		return
	}
	app.said()
	p := &connectPending{app: app, target: t}
	s.opts.Handler.HandleStream(ctx, newFlow(flow.TCP, flow.HTTP, app.addr(), t), p)
	p.Reject(flow.Unreachable) // no effect, unless the Handler forgot
}

// targetOfAuthority parses host:port; a port of 0 as standard means that the
// port must be given.
func targetOfAuthority(authority string, standard uint16) (flow.Target, error) {
	host, port, err := net.SplitHostPort(authority)
	if err != nil && standard != 0 {
		host, port, err = net.SplitHostPort(net.JoinHostPort(authority, strconv.Itoa(int(standard))))
	}
	if err != nil {
		return flow.Target{}, errors.New("want host:port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return flow.Target{}, errors.New("want a port from 1 to 65535")
	}
	return target(host, uint16(n))
}

// connectPending is a CONNECT request that has not been answered yet.
type connectPending struct {
	app     *client
	target  flow.Target
	decided atomic.Bool
}

var _ flow.Pending = (*connectPending)(nil)

// Accept implements flow.Pending.
func (p *connectPending) Accept() (flow.StreamConn, error) {
	if p.decided.Swap(true) {
		return nil, fmt.Errorf("accept connect: %w", net.ErrClosed)
	}
	p.app.SetWriteDeadline(time.Now().Add(handshakeTimeout))
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
