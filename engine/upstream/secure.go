package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	alpnH2    = "h2"
	alpnHTTP1 = "http/1.1"
)

// tlsConn is a TLS connection as a flow.StreamConn: close_notify is its FIN.
type tlsConn struct {
	*tls.Conn
	tcp  *net.TCPConn
	wire *wire // over tcp, below the Conn
}

// CloseRead does nothing: TLS has no way to say it, and what arrives is
// dropped with the connection.
func (c *tlsConn) CloseRead() error { return nil }

// SetLinger(0) makes Close reset the TCP connection.
func (c *tlsConn) SetLinger(sec int) error { return c.tcp.SetLinger(sec) }

// Close does not wait for a peer that takes no close_notify.
func (c *tlsConn) Close() error {
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	return c.Conn.Close()
}

var _ flow.StreamConn = (*tlsConn)(nil)

// tlsConfig is how a proxy is spoken to. Its cache of tickets spares later
// connections the certificates (RFC 8446 section 2.2).
func tlsConfig(s Spec, alpn []string) *tls.Config {
	return &tls.Config{
		ServerName:         s.ServerName(),
		RootCAs:            s.CA,
		NextProtos:         alpn,
		MinVersion:         tls.VersionTLS12,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
		// One write is one record, also at first.
		DynamicRecordSizingDisabled: true,
	}
}

// dialTLS connects to the proxy and completes the TLS handshake.
func (d *netDialer) dialTLS(ctx context.Context, s Spec, stats *counters, config *tls.Config, limit time.Duration) (*tlsConn, error) {
	tcp, err := d.dialProxy(ctx, s, stats)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	w := &wire{TCPConn: tcp, bufs: &d.records}
	c := tls.Client(w, config)
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = c.HandshakeContext(bounded)
	traceOf(ctx).TLS = time.Since(begin)
	if err != nil {
		tcp.Close()
		if bounded.Err() != nil {
			err = bounded.Err()
		}
		return nil, tlsFault(err)
	}
	return &tlsConn{c, tcp, w}, nil
}

// secure dials through an HTTP proxy over TLS with the HTTP version that ALPN
// settles on (RFC 7301): streams of shared sessions for HTTP/2, a connection
// each for HTTP/1.1.
type secure struct {
	net   *netDialer
	spec  Spec
	stats *counters
	tls   *tls.Config
	h2    sessions
	line  line
	http1 atomic.Bool // the last connection settled on HTTP/1.1
}

func newSecure(nd *netDialer, s Spec, stats *counters) *secure {
	alpn := []string{alpnH2, alpnHTTP1}
	if s.HTTP2 != nil {
		alpn = []string{alpnHTTP1}
		if *s.HTTP2 {
			alpn = []string{alpnH2}
		}
	}
	d := &secure{net: nd, spec: s, stats: stats, tls: tlsConfig(s, alpn)}
	d.h2.dial = d.dial
	d.line = connectLine(newPool(nd.opts.PoolMax, stats, d.dialHTTP1))
	d.http1.Store(len(alpn) == 1 && alpn[0] == alpnHTTP1)
	return d
}

// dial makes a connection and says whether it speaks HTTP/2.
func (d *secure) dial(ctx context.Context, limit time.Duration) (*tlsConn, bool, error) {
	c, err := d.net.dialTLS(ctx, d.spec, d.stats, d.tls, limit)
	if err != nil {
		return nil, false, err
	}
	alpn := d.tls.NextProtos
	switch got := c.ConnectionState().NegotiatedProtocol; {
	case got == alpnH2:
		d.http1.Store(false)
		return c, true, nil
	case len(alpn) == 1 && alpn[0] == alpnH2:
		c.Close()
		return nil, false, fault(Protocol, errors.New("the proxy does not speak HTTP/2"), "remove the setting that insists on HTTP/2")
	case got == "" || got == alpnHTTP1:
		d.http1.Store(true)
		return c, false, nil
	default:
		c.Close()
		return nil, false, fault(Protocol, fmt.Errorf("the proxy chose protocol %q, which was not offered", clip(got, 32)), "")
	}
}

// errHTTP2 says that a proxy that spoke HTTP/1.1 does not any more.
var errHTTP2 = errors.New("the proxy speaks HTTP/2 now")

// dialHTTP1 makes a connection for the pool.
func (d *secure) dialHTTP1(ctx context.Context) (*warm, error) {
	var tr Trace
	c, isH2, err := d.dial(WithTrace(ctx, &tr), tlsTimeout)
	if err != nil {
		return nil, err
	}
	if isH2 {
		_ = c.Close()
		return nil, errHTTP2
	}
	return newWarm(c, c.tcp, &tr, 0), nil
}

func (d *secure) open(ctx context.Context, a ask) (flow.StreamConn, error) {
	if d.http1.Load() {
		if c, err := d.line.tunnel(ctx, nil, a); !errors.Is(err, errHTTP2) {
			return c, err
		}
	}
	st, c, err := d.h2.connect(ctx, a, patience{tlsTimeout, handshakeTimeout})
	switch {
	case err != nil:
		return nil, err
	case c != nil: // the first connection, which has turned out to be HTTP/1.1
		tr := traceOf(ctx)
		w := newWarm(c, c.tcp, tr, 0)
		w.waited = tr.Dial + tr.TLS
		d.line.pool.prime()
		return d.line.tunnel(ctx, w, a)
	}
	return st, nil
}

// writeEarly sends the client's first bytes on a new tunnel, and closes it if
// that fails.
func writeEarly(ctx context.Context, c flow.StreamConn, early []byte) error {
	if len(early) == 0 {
		return nil
	}
	release := until(ctx, c, handshakeTimeout)
	_, err := c.Write(early)
	if whole := release(); err == nil && !whole {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		return targetFault(flow.Refused, fmt.Errorf("send first bytes: %w", err))
	}
	return nil
}

func (d *secure) check(ctx context.Context, s *Spec) error {
	st, c, err := d.h2.connect(ctx, ask{spec: s, t: flow.Target{Name: checkTarget, Port: 443}}, patience{greetTimeout, checkSilence})
	if st != nil {
		st.Close()
	}
	if c != nil {
		d.line.pool.prime()
		return d.line.check(ctx, newWarm(c, c.tcp, new(Trace), 0), s)
	}
	if errors.Is(err, errSilent) && ctx.Err() == nil {
		return silence()
	}
	return err
}

func (d *secure) ready(ctx context.Context) (time.Duration, error) {
	if d.http1.Load() {
		if took, err := d.line.ready(ctx, d.dialHTTP1); !errors.Is(err, errHTTP2) {
			return took, err
		}
	}
	begin := time.Now()
	c, _, err := d.dial(ctx, tlsTimeout)
	if err != nil {
		return 0, err
	}
	return time.Since(begin), c.Close()
}

// sessions is how many HTTP/2 sessions are open.
func (d *secure) sessions() int { return d.h2.count() }

func (d *secure) flush(again bool) {
	d.h2.flush(again)
	d.line.pool.flush(again)
}

func (d *secure) close() {
	d.h2.close()
	d.line.pool.close()
}
