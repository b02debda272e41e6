package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// checkTarget is where Check asks for a tunnel: a host that always exists
// (RFC 2606) and that nothing is sent to.
const checkTarget = "example.com"

const (
	// checkSilence is how long Check waits for the answer to a CONNECT, which
	// many proxies give only once the target has answered.
	checkSilence = 1500 * time.Millisecond
	// greetTimeout is how long it waits for what depends on the proxy alone.
	greetTimeout = 5 * time.Second
)

// connect dials through an HTTP/1.1 proxy without TLS.
type connect struct {
	net   *netDialer
	spec  Spec
	stats *counters
	line  line
}

func newConnect(nd *netDialer, s Spec, stats *counters) *connect {
	d := &connect{net: nd, spec: s, stats: stats}
	d.line = connectLine(newPool(nd.opts.PoolMax, stats, d.dial))
	return d
}

// connectLine is a line of HTTP/1.1 CONNECT.
func connectLine(p *pool) line {
	return line{pool: p, what: "CONNECT", request: appendConnect, reply: func(a *answer) error { return readReply(a) }}
}

// dial makes a connection, which is ready at once.
func (d *connect) dial(ctx context.Context) (*warm, error) {
	var tr Trace
	c, err := d.net.dialProxy(WithTrace(ctx, &tr), d.spec, d.stats)
	if err != nil {
		return nil, err
	}
	return newWarm(c, c, &tr, 0), nil
}

func (d *connect) open(ctx context.Context, a ask) (flow.StreamConn, error) {
	return d.line.tunnel(ctx, nil, a)
}

func (d *connect) check(ctx context.Context, s *Spec) error {
	w, err := d.dial(ctx)
	if err != nil {
		return err
	}
	defer d.line.pool.prime()
	return d.line.check(ctx, w, s)
}

func (d *connect) ready(ctx context.Context) (time.Duration, error) { return d.line.ready(ctx, d.dial) }
func (d *connect) flush(again bool)                                 { d.line.pool.flush(again) }
func (d *connect) close()                                           { d.line.pool.close() }

// dialProxy connects to the proxy itself.
func (d *netDialer) dialProxy(ctx context.Context, s Spec, stats *counters) (*net.TCPConn, error) {
	tr := traceOf(ctx)
	begin := time.Now()
	addrs, err := d.resolve(ctx, s.Host)
	if err != nil {
		return nil, dialFault(err)
	}
	connecting := time.Now()
	c, err := d.dialAddrs(ctx, addrs, s.Port)
	tr.Dial = time.Since(begin)
	if err != nil {
		return nil, dialFault(err)
	}
	stats.measured(time.Since(connecting))
	return c, nil
}

// check asks for a tunnel on w, which it closes, and judges the answer.
func (l *line) check(ctx context.Context, w *warm, s *Spec) error {
	k := l.begin(ctx, w, ask{spec: s, t: flow.Target{Name: checkTarget, Port: 443}})
	err := k.send()
	if err == nil {
		err = k.await(checkSilence)
	}
	_ = k.end(err)
	w.abort()
	switch {
	case err == nil:
		return nil
	case isTimeout(err) && ctx.Err() == nil:
		return silence()
	}
	return talkFault(l.what, err)
}

// ready makes a connection, keeps it and says how long that took.
func (l *line) ready(ctx context.Context, dial func(context.Context) (*warm, error)) (time.Duration, error) {
	epoch := l.pool.now()
	w, err := dial(ctx)
	if err != nil {
		return 0, err
	}
	took := w.dial + w.tls + w.greet
	l.pool.add(w, epoch)
	return took, nil
}

// appendConnect adds the request in RFC 9110 section 9.3.6, with credentials
// as in RFC 7617 (UTF-8).
//
// What leaves ahead of the answer is whatever an app says. A proxy that refuses
// the CONNECT and keeps the connection would take it for the next request,
// which no rule has seen: squid 5.7, Apache 2.4 and HAProxy 2.6 do (27 November
// 2026). "Connection: close" forbids them that (RFC 9931; RFC 9112
// section 9.6); on a CONNECT that they accept it changes nothing.
func appendConnect(b []byte, a *ask) []byte {
	b = append(b, "CONNECT "...)
	b = appendHostPort(b, a.t)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = appendHostPort(b, a.t)
	if auth := basicAuth(*a.spec); auth != "" {
		b = append(b, "\r\nProxy-Authorization: "...)
		b = append(b, auth...)
	}
	if a.ahead {
		b = append(b, "\r\nConnection: close"...)
	}
	return append(b, "\r\n\r\n"...)
}

// appendHostPort adds t.String().
func appendHostPort(b []byte, t flow.Target) []byte {
	switch {
	case t.Name == "" && t.Addr.Is6():
		b = append(t.Addr.AppendTo(append(b, '[')), ']')
	case t.Name == "":
		b = t.Addr.AppendTo(b)
	case strings.Contains(t.Name, ":"):
		b = append(append(append(b, '['), t.Name...), ']')
	default:
		b = append(b, t.Name...)
	}
	return strconv.AppendUint(append(b, ':'), uint64(t.Port), 10)
}

// basicAuth is the value of Proxy-Authorization, "" without credentials.
func basicAuth(s Spec) string {
	if s.Username == "" && s.Password == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(s.Username+":"+s.Password.Reveal()))
}

// readReply reads heads until a final one and judges it. Not a byte more is
// read from c than the heads hold.
func readReply(c io.Reader) error {
	left := maxReplyBytes
	for {
		head, err := readHead(c, left)
		if err != nil {
			return err
		}
		left -= len(head)
		r, err := parseReply(head)
		if err != nil {
			return err
		}
		if r.status >= 200 {
			if a, ok := c.(*answer); ok && r.pageLike() && a.canPeek() && !a.page() {
				return nil
			}
			return r.judge()
		}
		if r.status == 101 {
			return fault(Protocol, errors.New("CONNECT answered 101 (switching protocols)"), hintNotProxy)
		}
	}
}

// readHead reads up to and including an empty line, at most max bytes.
func readHead(c io.Reader, max int) ([]byte, error) {
	buf := make([]byte, 0, min(512, max))
	if s, ok := c.(source); ok && s.canPeek() {
		return peekHead(s, buf, max)
	}
	for {
		// A head that does not end here needs at least so many bytes more.
		n := shortestRest(buf)
		if n == 0 {
			return buf, nil
		}
		if len(buf)+n > max {
			return nil, errHeadTooLong()
		}
		from := len(buf)
		buf = append(buf, make([]byte, n)...)
		got, err := c.Read(buf[from:])
		buf = buf[:from+got]
		if got > 0 {
			err = plausible(buf)
		}
		if err != nil {
			return nil, headCut(buf, err)
		}
	}
}

// peekHead is readHead without a system call for every two bytes.
func peekHead(c source, buf []byte, max int) ([]byte, error) {
	for {
		from := len(buf)
		if from > max {
			return nil, errHeadTooLong()
		}
		if cap(buf)-from < 256 {
			buf = slices.Grow(buf, 1024)
		}
		n, err := c.peek(buf[from:min(cap(buf), max+1)])
		if err != nil {
			return nil, headCut(buf, err)
		}
		buf = buf[:from+n]
		end := headEnd(buf, from)
		if end < 0 && len(buf) > max || end > max {
			return nil, errHeadTooLong()
		}
		if end >= 0 {
			buf = buf[:end]
		}
		if _, err := io.ReadFull(c, buf[from:]); err != nil {
			return nil, headCut(buf[:from], err)
		}
		if err := plausible(buf); err != nil {
			return nil, err
		}
		if end >= 0 {
			return buf, nil
		}
	}
}

// abort closes c without waiting for what is unsent.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
