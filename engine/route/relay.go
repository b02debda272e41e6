package route

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
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
	// halfClosedIdle ends a flow of which one direction is closed and the other
	// has moved nothing for so long. A flow open both ways may be idle for ever:
	// TCP keep-alives find out if its ends are gone.
	halfClosedIdle = 5 * time.Minute
)

// relay is a stream that is being carried.
//
//	app ──up──► upstream      two pumps, one goroutine each, while bytes move;
//	app ◄─down─ upstream      none after a pause (rest.go)
type relay struct {
	h        *Handler
	up, down pump
	half     atomic.Int64 // 0 while both directions run; then when idling ends, in Unix nanoseconds
	parked   atomic.Bool  // it rests
	resting  rest
}

// relay copies between app and up until both directions have ended, and
// closes both. A FIN on one side becomes a FIN on the other, and the other
// direction runs on; a reset, or any error, on one side becomes a reset of
// both. So does the end of ctx.
func (h *Handler) relay(ctx context.Context, l *live, app, up flow.StreamConn) {
	head, app := flow.Unwrap(app)
	r := &relay{h: h}
	r.up = pump{relay: r, dst: up, src: app, head: head, count: l.countUp}
	r.down = pump{relay: r, dst: app, src: up, count: func(n int) {
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
	_ = app.Close()
	_ = up.Close()
}

// copy runs the directions that have not ended, until each has ended or both
// rest.
func (r *relay) copy() {
	var wg sync.WaitGroup
	if !r.up.ended {
		wg.Go(r.up.oneWay)
	}
	if !r.down.ended {
		r.down.oneWay()
	}
	wg.Wait()
}

// oneWay runs one direction to its end, or until the relay rests.
func (p *pump) oneWay() {
	err := p.run()
	if errors.Is(err, errRest) {
		return
	}
	p.ended = true
	if err != nil {
		abort(p.src)
		abort(p.dst)
		return
	}
	// If dst is broken the other direction finds out by reading.
	_ = p.dst.CloseWrite()
	// What is left is the other direction, from dst to src.
	limit := p.extend()
	_ = p.dst.SetReadDeadline(limit)
	_ = p.src.SetWriteDeadline(limit)
}

// extend puts the end of a half-closed flow off.
func (r *relay) extend() time.Time {
	limit := time.Now().Add(halfClosedIdle)
	r.half.Store(limit.UnixNano())
	return limit
}

// idled reports whether a half-closed flow has been idle for too long.
func (r *relay) idled() bool {
	limit := r.half.Load()
	return limit != 0 && time.Now().UnixNano() >= limit
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
	dst, src flow.StreamConn
	head     []byte // comes before what src gives
	count    func(n int)
	spoke    atomic.Bool // src has given something
	ended    bool        // owned by relay.copy's goroutines, one after the other
}

// run copies until the end of src (nil) or an error of either side.
//
//	both TCP, Linux     read 32 KiB at most; if that is full, splice till there is a pause
//	from TCP, Linux     read when there is something to read, without a buffer till then
//	from a chunk queue  the source writes its chunks itself (HTTP/2 streams)
//	anything else       a small buffer waits; a large one takes over while it fills
func (p *pump) run() error {
	if head := p.head; len(head) > 0 {
		p.head = nil
		if _, err := p.Write(head); err != nil {
			return err
		}
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

// Write sends to dst and counts.
func (p *pump) Write(b []byte) (int, error) {
	if !p.spoke.Load() {
		p.spoke.Store(true) // before an answer can come
	}
	n, err := p.dst.Write(b)
	if n > 0 {
		p.moved(n)
	}
	return n, err
}

// moved counts n bytes and puts the end of a half-closed flow off.
func (p *pump) moved(n int) {
	p.count(n)
	if p.half.Load() != 0 {
		limit := p.extend()
		_ = p.src.SetReadDeadline(limit)
		_ = p.dst.SetWriteDeadline(limit)
	}
}

// runTCP copies from a kernel socket. No buffer and no pipe is held while
// nothing comes: with thousands of idle flows that is what memory and file
// descriptors would go into.
func (p *pump) runTCP(src *net.TCPConn) error {
	r, err := newWaiter(src, &p.h.chunks)
	if err != nil {
		return err
	}
	dst, splice := p.dst.(*net.TCPConn)
	for {
		b, n, err := r.read()
		if n > 0 {
			_, werr := p.Write(b[:n])
			p.h.chunks.Put(b)
			if werr != nil {
				return werr // also a timeout: what was not written is lost
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !p.idled() {
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
		if n < chunkBytes || !splice {
			continue
		}
		if err := p.splice(dst, src); err != nil {
			return err
		}
	}
}

// splice moves bytes inside the kernel as long as they come without a pause.
// It does so in slices of spliceSlice at most, so that counters stay live and
// no pipe is held through a pause.
func (p *pump) splice(dst, src *net.TCPConn) error {
	defer p.resume()
	for {
		begin := time.Now()
		_ = src.SetReadDeadline(begin.Add(spliceSlice))
		n, err := dst.ReadFrom(&io.LimitedReader{R: src, N: spliceBytes})
		if n > 0 {
			p.moved(int(n))
		}
		// Only reading can time out so soon: a write has minutes from the last
		// moved, and one that timed out would have lost what is in the pipe.
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Since(begin) < halfClosedIdle/2 {
			err = nil
		} else if err == nil && n < spliceBytes {
			return nil // the end; the next read sees it too
		}
		if err != nil || n == 0 {
			return err
		}
	}
}

// resume lifts the read deadline, but for one that the other direction's end
// has set, maybe just now.
func (p *pump) resume() {
	_ = p.src.SetReadDeadline(time.Time{})
	if limit := p.half.Load(); limit != 0 {
		_ = p.src.SetReadDeadline(time.Unix(0, limit))
	}
}

// runBuffered copies from what can only be read with a buffer.
func (p *pump) runBuffered() error {
	small := make([]byte, idleBytes)
	for {
		n, err := p.src.Read(small)
		if n > 0 {
			if _, err := p.Write(small[:n]); err != nil {
				return err
			}
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
			if _, err := p.Write(b[:n]); err != nil {
				return err
			}
		}
		if err != nil || n < idleBytes {
			return err
		}
	}
}
