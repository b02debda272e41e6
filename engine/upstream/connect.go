package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
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
}

func (d *connect) DialStream(ctx context.Context, t flow.Target, early []byte) (flow.StreamConn, error) {
	c, err := d.net.dialProxy(ctx, d.spec, d.stats)
	if err != nil {
		return nil, err
	}
	if err := connectOver(ctx, c, d.spec, t, early, handshakeTimeout); err != nil {
		abort(c)
		return nil, err
	}
	return c, nil
}

func (d *connect) check(ctx context.Context) error {
	c, err := d.net.dialProxy(ctx, d.spec, d.stats)
	if err != nil {
		return err
	}
	defer c.Close()
	return checkConnect(ctx, c, d.spec)
}

func (d *connect) close() {}

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
	stats.rtt.Store(int64(time.Since(connecting)))
	return c, nil
}

// checkConnect asks for a tunnel and judges the answer; silence is fine.
func checkConnect(ctx context.Context, c net.Conn, s Spec) error {
	err := connectOver(ctx, c, s, flow.Target{Name: checkTarget, Port: 443}, nil, checkSilence)
	var e *Error
	if errors.As(err, &e) && e.Kind == Timeout && ctx.Err() == nil {
		return nil
	}
	return err
}

// connectOver turns c, a connection to an HTTP/1.1 proxy, into one to t, and
// sends early. On error c is of no further use.
func connectOver(ctx context.Context, c net.Conn, s Spec, t flow.Target, early []byte, limit time.Duration) error {
	begin := time.Now()
	release := until(ctx, c, limit)
	err := func() error {
		if _, err := c.Write(connectRequest(s, t)); err != nil {
			return talkFault("CONNECT", err)
		}
		if err := readReply(c); err != nil {
			return talkFault("CONNECT", err)
		}
		if len(early) > 0 {
			if _, err := c.Write(early); err != nil {
				return targetFault(flow.Refused, fmt.Errorf("send first bytes: %w", err))
			}
		}
		return nil
	}()
	traceOf(ctx).Connect = time.Since(begin)
	if whole := release(); err == nil && !whole {
		err = talkFault("CONNECT", context.Cause(ctx))
	}
	return err
}

// connectRequest is the request in RFC 9110 section 9.3.6, with credentials as
// in RFC 7617 (UTF-8).
func connectRequest(s Spec, t flow.Target) []byte {
	host := t.String()
	b := make([]byte, 0, 256)
	b = append(b, "CONNECT "+host+" HTTP/1.1\r\nHost: "+host+"\r\n"...)
	if a := basicAuth(s); a != "" {
		b = append(b, "Proxy-Authorization: "+a+"\r\n"...)
	}
	return append(b, "\r\n"...)
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
func readReply(c net.Conn) error {
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
			return r.judge()
		}
		if r.status == 101 {
			return fault(Protocol, errors.New("CONNECT answered 101 (switching protocols)"), hintNotProxy)
		}
	}
}

// readHead reads up to and including an empty line, at most max bytes.
func readHead(c net.Conn, max int) ([]byte, error) {
	buf := make([]byte, 0, min(512, max))
	if t, ok := c.(*net.TCPConn); ok && canPeek {
		return peekHead(t, buf, max)
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
func peekHead(c *net.TCPConn, buf []byte, max int) ([]byte, error) {
	var window [2048]byte
	for {
		n, err := peek(c, window[:min(len(window), max-len(buf)+1)])
		if err != nil {
			return nil, headCut(buf, err)
		}
		if n == 0 {
			return nil, headCut(buf, io.EOF)
		}
		from := len(buf)
		buf = append(buf, window[:n]...)
		end := headEnd(buf, from)
		if end < 0 && len(buf) > max || end > max {
			return nil, errHeadTooLong()
		}
		take := n
		if end >= 0 {
			take = end - from
		}
		if _, err := io.ReadFull(c, window[:take]); err != nil {
			return nil, headCut(buf[:from], err)
		}
		if err := plausible(buf[:from+take]); err != nil {
			return nil, err
		}
		if end >= 0 {
			return buf[:end], nil
		}
	}
}

// abort closes c without waiting for what is unsent.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
