package route

import (
	"context"
	"net"
	"sync/atomic"
	"time"
)

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

var _ net.PacketConn = (*query)(nil)
