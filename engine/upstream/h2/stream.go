package h2

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
)

// Stream is one tunnel. It is a net.Conn whose directions close separately;
// END_STREAM is the FIN and RST_STREAM the RST of TCP, and reads and writes on
// a stream that the peer reset fail with syscall.ECONNRESET.
type Stream struct {
	s  *Session
	id uint32 // 0 until the request leaves

	answer     chan struct{} // closed when response or err is set
	answerOnce sync.Once
	readable   chan struct{} // cap 1
	writable   chan struct{} // cap 1
	readLimit  deadline
	writeLimit deadline
	hard       atomic.Bool // SetLinger(0)

	wr sync.Mutex // one Write or CloseWrite at a time; taken before Session.wmu

	// The rest is guarded by s.mu. Who has seen answer closed may read id.
	request     request
	response    Response
	answered    bool
	interim     int
	err         error // why it failed; reads see it after what is buffered
	ended       bool  // the peer sent END_STREAM
	sentEnd     bool  // we did
	closed      bool  // Close was called
	deaf        bool  // CloseRead was called: what arrives is dropped
	abandoned   bool  // Abandon was called before the answer came
	starved     bool  // in s.starved
	sendWindow  int64
	recvLeft    int64 // what the peer may still send
	window      int64 // what it may have in flight
	consumed    int64 // read by the user, not yet returned to the peer
	drained     bool  // nothing was unread at some time since the last return
	first, last *chunk
}

// chunk is a piece of what has arrived.
type chunk struct {
	next *chunk
	r, w int
	b    [maxFrameBytes]byte
}

func newStream(s *Session) *Stream {
	return &Stream{
		s:          s,
		answer:     make(chan struct{}),
		readable:   make(chan struct{}, 1),
		writable:   make(chan struct{}, 1),
		readLimit:  makeDeadline(),
		writeLimit: makeDeadline(),
		window:     baseWindow,
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// deliver gives the stream a chunk that has arrived, or its bytes; took says
// that the chunk itself is the stream's now.
func (st *Stream) deliver(c *chunk) (took bool) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	n := c.w - c.r
	switch last := st.last; {
	case st.err != nil || st.closed:
		return false
	case st.abandoned:
		st.resetLocked(http2.ErrCodeCancel, context.Canceled)
		return false
	case st.deaf:
		st.creditLocked(int64(n))
		return false
	case last != nil && len(last.b)-last.w >= n:
		last.w += copy(last.b[last.w:], c.b[c.r:c.w])
	case last == nil:
		st.first, st.last, took = c, c, true
	default:
		last.next, st.last, took = c, c, true
	}
	s.held += int64(n)
	signal(st.readable)
	return took
}

// creditLocked returns n bytes to the peer's window, in steps of a quarter of
// it: in larger ones a round trip would carry little more than half. A
// reader that has emptied the buffer meanwhile keeps up with the peer: its
// window grows to what the path needs.
func (st *Stream) creditLocked(n int64) {
	st.consumed += n
	if st.consumed < st.window/4 || st.ended || st.err != nil {
		return
	}
	add := st.consumed
	st.consumed = 0
	if st.drained {
		st.drained = false
		add += st.widenLocked(st.s.path.target, extraBytes)
	}
	st.recvLeft += add
	st.s.enqueueLocked(control{kind: http2.FrameWindowUpdate, id: st.id, n: uint32(add)})
}

// widenLocked raises the window to want, as long as all streams' together stay
// within limit, and says by how much.
func (st *Stream) widenLocked(want, limit int64) int64 {
	add := max(0, min(want-st.window, limit-st.s.extra))
	st.window += add
	st.s.extra += add
	return add
}

// consumedLocked notes that the user has taken n bytes.
func (st *Stream) consumedLocked(n int64) {
	st.s.held -= n
	st.s.creditLocked()
	st.drained = st.drained || st.first == nil
	st.creditLocked(n)
}

// endLocked notes the peer's END_STREAM.
func (st *Stream) endLocked() {
	st.ended = true
	signal(st.readable)
	st.dropIfDoneLocked()
}

func (st *Stream) dropIfDoneLocked() {
	s := st.s
	if !(st.ended && st.sentEnd || st.err != nil) || s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	s.extra -= st.window - baseWindow
	if st.answered {
		s.answered--
	}
	s.emptiedLocked()
}

// failLocked makes everything on the stream fail with err; the first counts.
func (st *Stream) failLocked(err error) {
	if st.err == nil {
		st.err = err
	}
	st.answerOnce.Do(func() { close(st.answer) })
	signal(st.readable)
	signal(st.writable)
}

// wasReset takes the peer's RST_STREAM; s.mu is held.
func (st *Stream) wasReset(code http2.ErrCode) {
	switch {
	case code == http2.ErrCodeRefusedStream && !st.answered:
		st.failLocked(fmt.Errorf("%w: the proxy refused the stream", ErrUnprocessed))
	case code == http2.ErrCodeNo && st.ended:
		// All is said; the proxy only wants no more of ours (RFC 9113 section 8.1).
		st.failLocked(&net.OpError{Op: "write", Net: "h2", Err: syscall.EPIPE})
	default:
		st.failLocked(&net.OpError{Op: "read", Net: "h2", Err: fmt.Errorf("%w (RST_STREAM %v)", errReset, code)})
	}
	st.dropIfDoneLocked()
}

// reset sends RST_STREAM unless the stream is over already.
func (st *Stream) reset(code http2.ErrCode, why error) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.resetLocked(code, why)
}

func (st *Stream) resetLocked(code http2.ErrCode, why error) {
	if s := st.s; s.streams[st.id] == st {
		s.enqueueLocked(control{kind: http2.FrameRSTStream, id: st.id, n: uint32(code)})
	}
	st.failLocked(why)
	st.dropIfDoneLocked()
}

// next waits for data and gives the first chunk, or why there is none. The
// chunk stays first until consume.
func (st *Stream) next() (*chunk, error) {
	for {
		st.s.mu.Lock()
		c, err := st.first, st.err
		switch {
		case st.closed:
			err = net.ErrClosed
		case c != nil:
			err = nil
		case st.ended, st.deaf:
			err = io.EOF
		}
		st.s.mu.Unlock()
		if err != nil {
			signal(st.readable) // another reader sees the end too
			return nil, err
		}
		if c != nil {
			return c, nil
		}
		select {
		case <-st.readable:
		case <-st.readLimit.wait():
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// Read implements net.Conn. One reader at a time.
func (st *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if st.readLimit.passed() {
		return 0, os.ErrDeadlineExceeded
	}
	if _, err := st.next(); err != nil {
		return 0, err
	}
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	n := 0
	for st.first != nil && n < len(p) {
		c := st.first
		k := copy(p[n:], c.b[c.r:c.w])
		c.r += k
		n += k
		if c.r == c.w {
			st.dropFirstLocked()
		}
	}
	st.consumedLocked(int64(n))
	return n, nil
}

func (st *Stream) dropFirstLocked() {
	c := st.first
	if st.first = c.next; st.first == nil {
		st.last = nil
	}
	st.s.pool.Put(c)
}

// take removes the first chunk from the buffer, so that it can be written
// without holding a lock; it waits as Read does.
func (st *Stream) take() (*chunk, error) {
	if _, err := st.next(); err != nil {
		return nil, err
	}
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	c := st.first
	if c == nil {
		return nil, net.ErrClosed // by Close, meanwhile
	}
	if st.first = c.next; st.first == nil {
		st.last = nil
	}
	return c, nil
}

// WriteTo implements io.WriterTo: bytes go to w from where they arrived, and
// no buffer is held while none arrive. One reader at a time.
func (st *Stream) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		c, err := st.take()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(c.b[c.r:c.w])
		total += int64(n)
		st.s.mu.Lock()
		st.consumedLocked(int64(c.w - c.r))
		st.s.mu.Unlock()
		st.s.pool.Put(c)
		if err != nil {
			return total, err
		}
	}
}

// CloseRead drops what has arrived and what will. Reads return io.EOF.
func (st *Stream) CloseRead() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.deaf = true
	st.discardLocked()
	signal(st.readable)
	return nil
}

func (st *Stream) discardLocked() {
	var n int64
	for st.first != nil {
		n += int64(st.first.w - st.first.r)
		st.dropFirstLocked()
	}
	st.consumedLocked(n)
}

// SetLinger(0) makes Close reset the stream, as for a *net.TCPConn.
func (st *Stream) SetLinger(sec int) error {
	st.hard.Store(sec == 0)
	return nil
}

// Close ends the stream: with END_STREAM where the peer has ended already,
// with RST_STREAM where it has not, because nobody will read what it sends.
func (st *Stream) Close() error {
	s := st.s
	s.mu.Lock()
	if st.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	st.closed = true
	st.discardLocked()
	graceful := st.ended && !st.sentEnd && st.err == nil && !st.hard.Load()
	s.mu.Unlock()
	signal(st.readable)
	signal(st.writable)
	if graceful && s.writeData(st.id, nil, true) == nil {
		s.mu.Lock()
		st.sentEnd = true
		st.dropIfDoneLocked()
		s.mu.Unlock()
		return nil
	}
	code := http2.ErrCodeCancel
	if st.hard.Load() {
		code = http2.ErrCodeConnect // what RFC 9113 section 8.5 maps a TCP reset to
	}
	st.reset(code, net.ErrClosed)
	return nil
}

func (st *Stream) LocalAddr() net.Addr  { return st.s.conn.LocalAddr() }
func (st *Stream) RemoteAddr() net.Addr { return st.s.conn.RemoteAddr() }

func (st *Stream) SetDeadline(t time.Time) error {
	st.readLimit.set(t)
	st.writeLimit.set(t)
	return nil
}

func (st *Stream) SetReadDeadline(t time.Time) error {
	st.readLimit.set(t)
	return nil
}

func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.writeLimit.set(t)
	return nil
}

var (
	_ net.Conn    = (*Stream)(nil)
	_ io.WriterTo = (*Stream)(nil)
)
