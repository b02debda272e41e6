package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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
	tcp *net.TCPConn
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

// dialTLS connects to the proxy and completes the TLS handshake.
func (d *netDialer) dialTLS(ctx context.Context, s Spec, stats *counters, alpn []string, limit time.Duration) (*tlsConn, error) {
	tcp, err := d.dialProxy(ctx, s, stats)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	c := tls.Client(tcp, &tls.Config{
		ServerName: s.serverName(),
		RootCAs:    s.CA,
		NextProtos: alpn,
		MinVersion: tls.VersionTLS12,
	})
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
	return &tlsConn{c, tcp}, nil
}

// secure dials through an HTTP proxy over TLS with the HTTP version that ALPN
// settles on (RFC 7301): streams of shared sessions for HTTP/2, a connection
// each for HTTP/1.1.
type secure struct {
	net   *netDialer
	spec  Spec
	stats *counters
	alpn  []string
	h2    sessions
}

func newSecure(nd *netDialer, s Spec, stats *counters) *secure {
	d := &secure{net: nd, spec: s, stats: stats, alpn: []string{alpnH2, alpnHTTP1}}
	if s.HTTP2 != nil {
		d.alpn = []string{alpnHTTP1}
		if *s.HTTP2 {
			d.alpn = []string{alpnH2}
		}
	}
	d.h2.dial = d.dial
	return d
}

// dial makes a connection and says whether it speaks HTTP/2.
func (d *secure) dial(ctx context.Context, limit time.Duration) (*tlsConn, bool, error) {
	c, err := d.net.dialTLS(ctx, d.spec, d.stats, d.alpn, limit)
	if err != nil {
		return nil, false, err
	}
	switch got := c.ConnectionState().NegotiatedProtocol; {
	case got == alpnH2:
		return c, true, nil
	case len(d.alpn) == 1 && d.alpn[0] == alpnH2:
		c.Close()
		return nil, false, fault(Protocol, errors.New("the proxy does not speak HTTP/2"), "remove the setting that insists on HTTP/2")
	case got == "" || got == alpnHTTP1:
		return c, false, nil
	default:
		c.Close()
		return nil, false, fault(Protocol, fmt.Errorf("the proxy chose protocol %q, which was not offered", clip(got, 32)), "")
	}
}

func (d *secure) DialStream(ctx context.Context, t flow.Target, early []byte) (flow.StreamConn, error) {
	st, c, err := d.h2.connect(ctx, d.spec, t, patience{tlsTimeout, handshakeTimeout})
	if err != nil {
		return nil, err
	}
	if st != nil {
		if err := writeEarly(ctx, st, early); err != nil {
			return nil, err
		}
		return st, nil
	}
	if err := connectOver(ctx, c, d.spec, t, early, handshakeTimeout); err != nil {
		abort(c.tcp)
		return nil, err
	}
	return c, nil
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

func (d *secure) check(ctx context.Context) error {
	st, c, err := d.h2.connect(ctx, d.spec, flow.Target{Name: checkTarget, Port: 443}, patience{greetTimeout, checkSilence})
	if st != nil {
		st.Close()
	}
	if c != nil {
		defer c.Close()
		return checkConnect(ctx, c, d.spec)
	}
	if errors.Is(err, errSilent) && ctx.Err() == nil {
		return nil
	}
	return err
}

func (d *secure) close() { d.h2.close() }
