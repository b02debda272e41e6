package route

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	// chunkBytes is what passes through our hands at once. What one read fills
	// less than that is not worth splicing.
	chunkBytes = 32 << 10
	// spliceSlice and spliceBytes bound one call that splices. With 20 ms and
	// 16 MiB throughput is what plain io.Copy's is (2026-11).
	spliceSlice = 20 * time.Millisecond
	spliceBytes = 16 << 20
	// idleBytes is the buffer that waits where the system cannot say that bytes
	// have come without one.
	idleBytes = 2 << 10
)

// urgentPorts are those of protocols that have urgent data: FTP, Telnet, rexec,
// rlogin, rsh. On others nobody should (RFC 6093 section 5), and the byte arrives
// among the others.
var urgentPorts = [...]uint16{21, 23, 512, 513, 514}

// relay is a stream that is being carried.
//
//	app ──up──► upstream      two pumps, one goroutine each, while bytes move;
//	app ◄─down─ upstream      none after a pause (rest.go)
type relay struct {
	h        *Handler
	urgent   bool // urgent bytes are carried as such
	up, down pump
	wg       sync.WaitGroup // pumps, and what they start
	parked   atomic.Bool    // it rests
	resting  rest
	finished sync.Once

	mu   sync.Mutex
	half atomic.Bool // written under mu; a direction has ended, or one end takes no more
}

// relay copies between app and up until both directions have ended, and
// closes both. A FIN on one side becomes a FIN on the other, and the other
// direction runs on. What an end has said before it was reset, or refused to
// hear more, is delivered; then the other end is reset too, as the kernels of a
// direct connection would have it. The end of ctx resets both at once.
func (h *Handler) relay(ctx context.Context, l *live, app, up flow.StreamConn) {
	head, app := flow.Unwrap(app)
	r := &relay{h: h, urgent: slices.Contains(urgentPorts[:], l.flow.Target.Port)}
	r.up = pump{relay: r, other: &r.down, dst: up, src: app, head: head, count: l.countUp}
	r.down = pump{relay: r, other: &r.up, dst: app, src: up, count: func(n int) {
		if l.firstByte.Load() == 0 {
			h.cameBack(l)
		}
		l.countDown(n)
	}}
	stop := context.AfterFunc(ctx, func() {
		abort(app)
		abort(up)
	})
	defer stop()
	l.relay.Store(r)
	for r.copy(); !r.up.ended || !r.down.ended; r.copy() {
		if !r.wait(ctx) {
			abort(app)
			abort(up)
			break
		}
	}
	r.up.jam.stop()
	r.down.jam.stop()
	_ = app.Close()
	_ = up.Close()
}

// copy runs the directions that have not ended, until each has ended or both
// rest.
func (r *relay) copy() {
	if !r.up.ended {
		r.wg.Go(r.up.oneWay)
	}
	if !r.down.ended {
		r.down.oneWay()
	}
	r.wg.Wait()
}

// oneWay runs one direction to its end, or until the relay rests.
func (p *pump) oneWay() {
	err := p.run()
	if errors.Is(err, errRest) {
		return
	}
	if srcGone := p.end(err); srcGone {
		p.finish(p.src, p.dst)
	}
}

// end notes the end of src, and passes it on if it was an orderly one. It
// reports whether src is of no use any more: it has failed, or takes nothing.
func (p *pump) end(err error) (srcGone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Else a write was told of a reset, and reading only ended; or not all that src
	// gave has reached dst.
	if err == nil && !p.other.wasReset && !p.refused.Load() {
		_ = p.dst.CloseWrite() // if dst is broken the other direction finds out by reading
	}
	p.ended = true
	p.half.Store(true)
	return err != nil || p.other.refused.Load()
}

// refuse notes that dst takes no more. What it has said before is still
// carried to src (RFC 9112 section 9.6), by the other direction; meanwhile this
// one reads what src sends and drops it, so that src comes to reading.
func (p *pump) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused.Swap(true) {
		return
	}
	p.wasReset = errors.Is(err, syscall.ECONNRESET)
	p.half.Store(true)
	if p.other.ended { // all of it is carried
		p.wg.Go(func() { p.finish(p.dst, p.src) })
	}
}

// finish ends a relay of which one connection is of no use any more: the other
// is reset once its peer has got what was written to it.
func (r *relay) finish(useless, c flow.StreamConn) {
	r.finished.Do(func() {
		abort(useless)
		settle(c)
		abort(c)
	})
}

// settle waits until the peer of c has acknowledged all that was written: a
// reset would destroy what is on its way.
func settle(c flow.StreamConn) {
	const first, last = 100 * time.Microsecond, 50 * time.Millisecond
	begin, pause := time.Now(), first
	for unacked(c) && time.Since(begin) < settleWithin {
		time.Sleep(pause)
		pause = min(2*pause, last)
	}
}

// abort closes c with a reset where it knows how (TCP, HTTP/2 streams).
func abort(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// pump is one direction of a relay.
type pump struct {
	*relay
	other    *pump // the other direction
	dst, src flow.StreamConn
	head     []byte // comes before what src gives
	count    func(n int)
	spoke    atomic.Bool // src has given something
	refused  atomic.Bool // dst takes no more: what src gives is dropped
	jam      jam         // of dst
	wasReset bool        // guarded by mu; because dst was reset
	ended    bool        // guarded by mu; src has given all
}

// run copies until the end of src (nil) or an error of it.
//
//	both TCP, Linux     read 32 KiB at most; if that is full, splice till there is a pause
//	from TCP, Linux     read when there is something to read, without a buffer till then
//	from a chunk queue  the source writes its chunks itself (HTTP/2 streams)
//	anything else       a small buffer waits; a large one takes over while it fills
func (p *pump) run() error {
	if head := p.head; len(head) > 0 {
		p.head = nil
		p.write(head, false)
	}
	if src, ok := p.src.(*net.TCPConn); ok && canWait {
		return p.runTCP(src)
	}
	if src, ok := p.src.(io.WriterTo); ok {
		if _, tcp := p.src.(*net.TCPConn); !tcp {
			_, err := src.WriteTo(p)
			return err
		}
	}
	return p.runBuffered()
}

// Write sends to dst and counts, or drops if dst takes no more. It does not
// fail.
func (p *pump) Write(b []byte) (int, error) {
	p.write(b, false)
	return len(b), nil
}

// write is Write; with urgent, dst is a kernel socket, and the last byte of b is
// sent as urgent.
func (p *pump) write(b []byte, urgent bool) {
	if !p.spoke.Load() {
		p.spoke.Store(true) // before an answer can come
	}
	if p.refused.Load() {
		return
	}
	p.bulk(len(b))
	var n int
	var err error
	if urgent {
		n, err = writeUrgent(p.dst.(*net.TCPConn), b)
	} else {
		n, err = p.dst.Write(b)
		for try := 0; errors.Is(err, syscall.EINVAL) && try < jamTries && p.jam.repairing(); try++ {
			var more int
			more, err = p.dst.Write(b[n:])
			n += more
		}
	}
	if n > 0 {
		p.count(n)
	}
	if err != nil {
		p.refuse(err)
	}
}

// runTCP copies from a kernel socket. No buffer and no pipe is held while
// nothing comes: with thousands of idle flows that is what memory and file
// descriptors would go into.
func (p *pump) runTCP(src *net.TCPConn) error {
	dst, splice := p.dst.(*net.TCPConn)
	r, err := newWaiter(src, &p.h.chunks, splice && p.urgent)
	if err != nil {
		return err
	}
	for {
		b, n, err := r.read()
		for try := 0; errors.Is(err, syscall.EPERM) && try < jamTries && p.other.jam.repairing(); try++ {
			b, n, err = r.read()
		}
		if n > 0 {
			p.write(b[:n], r.mark)
			p.h.chunks.Put(b)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if p.rest() {
				return errRest
			}
			p.resume()
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n < chunkBytes || !splice || p.refused.Load() {
			continue
		}
		if err := p.splice(dst, src); err != nil {
			return err
		}
	}
}

// splice moves bytes inside the kernel as long as they come without a pause.
// It does so in slices of spliceSlice at most, so that counters stay live and
// no pipe is held through a pause. An error is one of src.
func (p *pump) splice(dst, src *net.TCPConn) error {
	defer p.resume()
	for {
		_ = src.SetReadDeadline(time.Now().Add(spliceSlice))
		n, err := dst.ReadFrom(&io.LimitedReader{R: src, N: spliceBytes})
		if n > 0 {
			p.count(int(n))
		}
		switch {
		case err == nil && n < spliceBytes:
			return nil // the end; the next read sees it too
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded): // of reading: writes have none
			if n == 0 {
				return nil
			}
		default:
			if !gone(dst) {
				return err
			}
			p.refuse(err) // what was in the pipe is lost with dst
			return nil
		}
	}
}

// resume lifts the read deadline.
func (p *pump) resume() { _ = p.src.SetReadDeadline(time.Time{}) }

// runBuffered copies from what can only be read with a buffer.
func (p *pump) runBuffered() error {
	small := make([]byte, idleBytes)
	for {
		n, err := p.src.Read(small)
		if n > 0 {
			p.write(small[:n], false)
		}
		if err == nil && n == len(small) {
			err = p.burst()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// burst copies with a large buffer while reads give much.
func (p *pump) burst() error {
	b := p.h.chunks.Get().(*[chunkBytes]byte)
	defer p.h.chunks.Put(b)
	for {
		n, err := p.src.Read(b[:])
		if n > 0 {
			p.write(b[:n], false)
		}
		if err != nil || n < idleBytes {
			return err
		}
	}
}
