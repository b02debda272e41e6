package listener

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

var errReset = errors.New("connection reset by the flow's other end")

// pipe is one end of a connection in memory: a net.Pipe for each direction, so
// that they close separately. A write waits until it is read.
type pipe struct {
	net.Conn              // what is read
	out      net.Conn     // what is written
	mine     *atomic.Bool // this end closes by a reset
	theirs   *atomic.Bool // and the other one
}

var _ flow.StreamConn = (*pipe)(nil)

// newPipe is the two ends of one connection.
func newPipe() (a, b *pipe) {
	toA, fromB := net.Pipe()
	toB, fromA := net.Pipe()
	var byA, byB atomic.Bool
	return &pipe{toA, fromA, &byA, &byB}, &pipe{toB, fromB, &byB, &byA}
}

func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if err == io.EOF && p.theirs.Load() {
		err = errReset
	}
	return n, err
}

func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipe) CloseRead() error            { return p.Conn.Close() }
func (p *pipe) CloseWrite() error           { return p.out.Close() }

// SetLinger of 0 makes Close a reset, as that of *net.TCPConn does.
func (p *pipe) SetLinger(sec int) error {
	p.mine.Store(sec == 0)
	return nil
}

func (p *pipe) Close() error {
	p.Conn.Close()
	return p.out.Close()
}

func (p *pipe) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }

func (p *pipe) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}
