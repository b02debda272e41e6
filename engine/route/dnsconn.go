package route

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// dnsOnly is an app's socket as DNS sees it: datagrams to other ports go to
// other on the way. Once there was one, the socket lives as long as extend says
// (which moves the deadline), not only as long as there are queries, and has a
// buffer that is long enough for any datagram.
type dnsOnly struct {
	net.PacketConn
	other  func(p []byte, to net.Addr)
	extend func() bool
	buf    []byte // nil until there was another; used by the one reader
}

func (c *dnsOnly) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		b := p
		if c.buf != nil {
			b = c.buf
		}
		n, to, err := c.PacketConn.ReadFrom(b)
		if c.buf != nil && errors.Is(err, os.ErrDeadlineExceeded) && c.extend() {
			continue
		}
		if err != nil || flow.AddrPortOf(to).Port() == 53 {
			return copy(p, b[:n]), to, err
		}
		if n < len(b) { // else it may have been cut
			c.other(b[:n], to)
		}
		if c.buf == nil {
			c.buf = make([]byte, datagramBytes)
		}
	}
}

// query is a socket with a single datagram in it. Reading a second one waits
// until the first is answered, or ten seconds are over.
type query struct {
	app    *session
	packet []byte
	to     net.Addr
	done   <-chan struct{}
	cancel context.CancelFunc
	read   atomic.Bool
}

func (q *query) ReadFrom(p []byte) (int, net.Addr, error) {
	if !q.read.Swap(true) {
		return copy(p, q.packet), q.to, nil
	}
	<-q.done
	return 0, nil, net.ErrClosed
}

func (q *query) WriteTo(p []byte, from net.Addr) (int, error) {
	n, err := q.app.app.WriteTo(p, from)
	q.app.touch()
	q.cancel()
	return n, err
}

func (q *query) Close() error {
	q.cancel()
	return nil
}

func (q *query) LocalAddr() net.Addr              { return q.app.app.LocalAddr() }
func (q *query) SetDeadline(time.Time) error      { return nil }
func (q *query) SetReadDeadline(time.Time) error  { return nil }
func (q *query) SetWriteDeadline(time.Time) error { return nil }

var (
	_ net.PacketConn = (*dnsOnly)(nil)
	_ net.PacketConn = (*query)(nil)
)
