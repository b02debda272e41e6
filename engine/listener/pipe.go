package listener

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

var errReset = errors.New("connection reset by the flow's other end")

// pipe is one end of a connection in memory, between forward and the Handler of
// its flow. It holds no buffer: a Write waits until it is read, or,
// while the other end runs WriteTo, is the write to where that leads.
//
//	forward ─Write─► half ─WriteTo─► upstream     no goroutine between
//	forward ◄─Read── half ◄──Write── relay
type pipe struct{ in, out *half }

var (
	_ flow.StreamConn = (*pipe)(nil)
	_ io.WriterTo     = (*pipe)(nil)
)

// newPipe is the two ends of one connection.
func newPipe() (a, b *pipe) {
	toA, toB := newHalf(), newHalf()
	return &pipe{toA, toB}, &pipe{toB, toA}
}

func (p *pipe) Read(b []byte) (int, error)  { return p.in.read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.out.write(b) }

// WriteTo gives w what the other end writes, until that has closed; see half.
func (p *pipe) WriteTo(w io.Writer) (int64, error) { return p.in.writeTo(w) }

func (p *pipe) CloseRead() error {
	p.in.change(func(h *half) { h.deaf = true })
	return nil
}

func (p *pipe) CloseWrite() error {
	p.out.change(func(h *half) { h.end(io.EOF) })
	return nil
}

// whenChanged reports whether the other end has neither written nor closed. If
// so, f is called once it does, on a goroutine of its own; nil takes that back.
func (p *pipe) whenChanged(f func()) bool {
	h := p.in
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notify = nil
	if len(h.data) > 0 || h.ended != nil {
		return false
	}
	h.notify = f
	return true
}

// SetLinger of 0 makes Close a reset, as that of *net.TCPConn does.
func (p *pipe) SetLinger(sec int) error {
	if sec == 0 {
		p.out.change(func(h *half) { h.last = errReset })
	}
	return nil
}

func (p *pipe) Close() error {
	p.CloseRead()
	p.out.change(func(h *half) { h.end(h.last) })
	return p.SetDeadline(time.Time{}) // no timers are left
}

func (p *pipe) LocalAddr() net.Addr  { return pipeAddr{} }
func (p *pipe) RemoteAddr() net.Addr { return pipeAddr{} }

func (p *pipe) SetReadDeadline(t time.Time) error {
	p.in.limit(&p.in.reading, t)
	return nil
}

func (p *pipe) SetWriteDeadline(t time.Time) error {
	p.out.limit(&p.out.writing, t)
	return nil
}

func (p *pipe) SetDeadline(t time.Time) error {
	p.SetReadDeadline(t)
	return p.SetWriteDeadline(t)
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// half is one direction of a pipe.
type half struct {
	mu               sync.Mutex
	changed          sync.Cond // of anything below, all guarded by mu
	data             []byte    // of the Write that waits, not yet read
	sink             io.Writer // of writeTo while it runs, else nil
	sunk             int64     // bytes given to sink
	busy             bool      // a Write is under way
	deaf             bool      // the reader has closed
	notify           func()    // see whenChanged
	ended            error     // what the reader gets after the data; nil while the writer has not closed
	last             error     // what ended will be
	reading, writing deadline
}

// deadline is guarded by its half's mu.
type deadline struct {
	timer  *time.Timer // nil if none is running
	passed bool
}

func newHalf() *half {
	h := &half{last: io.EOF}
	h.changed.L = &h.mu
	return h
}

func (h *half) change(f func(*half)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h)
	h.changed.Broadcast()
}

// end is the writer's close. The caller holds mu.
func (h *half) end(err error) {
	if h.ended == nil {
		h.ended = err
		h.tell()
	}
}

// tell is for whenChanged. The caller holds mu.
func (h *half) tell() {
	if h.notify != nil {
		go h.notify()
		h.notify = nil
	}
}

func (h *half) write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.busy { // writes do not mix
		h.changed.Wait()
	}
	h.busy = true
	h.tell()
	defer func() {
		h.busy, h.data = false, nil
		h.changed.Broadcast()
	}()
	for {
		switch {
		case h.deaf || h.ended != nil:
			return n, io.ErrClosedPipe
		case h.writing.passed:
			return n, os.ErrDeadlineExceeded
		case len(b) == 0:
			return n, nil
		case h.sink != nil:
			w := h.sink
			h.mu.Unlock()
			m, err := w.Write(b)
			h.mu.Lock()
			n, b, h.sunk = n+m, b[m:], h.sunk+int64(m)
			if err != nil {
				h.deaf = true // as is whom the sink leads to
				return n, err
			}
		default:
			h.data = b
			h.changed.Broadcast()
			h.changed.Wait()
			n, b, h.data = n+len(b)-len(h.data), h.data, nil
		}
	}
}

// over is why the reader gets no more; nil if it may. The caller holds mu.
func (h *half) over() error {
	switch {
	case h.deaf:
		return io.ErrClosedPipe
	case h.reading.passed:
		return os.ErrDeadlineExceeded
	}
	return h.ended
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.data) == 0 || h.deaf || h.reading.passed {
		if err := h.over(); err != nil {
			return 0, err
		}
		h.changed.Wait()
	}
	n := copy(b, h.data)
	if h.data = h.data[n:]; len(h.data) == 0 {
		h.changed.Broadcast()
	}
	return n, nil
}

// writeTo has w take what is written, by those who write it. Before it returns,
// whoever does so has ended.
func (h *half) writeTo(w io.Writer) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sink = w
	h.changed.Broadcast() // who waits goes on by w
	for h.over() == nil {
		h.changed.Wait()
	}
	err := h.over()
	h.sink = nil
	for h.busy && h.data == nil {
		h.changed.Wait()
	}
	if err == io.EOF {
		err = nil
	}
	return h.sunk, err
}

// limit sets a deadline; the zero time means none.
func (h *half) limit(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
	if t.IsZero() {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(t), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.timer == timer {
			d.passed = true
			h.changed.Broadcast()
		}
	})
	d.timer = timer
}
