package listener

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// forward passes a request on and the response back, as a proxy does that is
// not seen: it adds neither Via nor Forwarded. It reports whether another request
// may follow on the app's connection.
//
//	app ─head──► request ─append──► target    one write, with the body if it is here
//	app ─body──► follow ──────────► target    a goroutine of its own
//	app ◄─append─ response ◄─────── target    sent on whenever no more has come
func (c *appConn) forward(ctx context.Context) (again bool) {
	c.out = c.request.append(c.out[:0])
	whole := c.takeBody()
	c.uploaded.Store(whole)
	if whole {
		c.watchSoon()
	}
	err := c.exchange(ctx, whole)
	if left := c.unfollow(); left != nil && (err != nil || !c.answered) {
		err = left
	}
	switch {
	case errors.Is(err, errAppGone):
		c.Close()
	case err != nil && !c.answered:
		c.refuse(failure(c.to.String(), err))
	case err != nil && c.untilClose:
		c.SetLinger(0) // all that tells the app that the rest is missing
		c.Close()
	case err != nil || c.final || !c.uploaded.Load():
		c.hangUp()
	default:
		return true
	}
	return false
}

// exchange sends the request and passes the response on.
func (c *appConn) exchange(ctx context.Context, whole bool) error {
	c.answered, c.untilClose, c.final = false, false, false
	key := targetKey{who: c.sharer(), to: c.to}
	for t := c.takeTarget(key); ; t = nil {
		sent := false
		if t == nil {
			of := c.s.targets.now()
			conn, left, err := c.s.dial(ctx, c.gone, c.addr(), c.door(), c.to, c.out)
			if err != nil {
				return err
			}
			t, sent = c.s.targets.adopt(conn, key, of), left
		}
		t.bound = t.bound || c.binds
		if !c.use(t) {
			t.Close()
			return errAppGone
		}
		var err error
		if !sent {
			_, err = t.Write(c.out)
		}
		if err == nil && !whole {
			c.following.Go(func() { c.follow(t) })
		}
		// Also where writing failed: a target may answer before it hangs up.
		kept, heard, err := c.respond(t)
		if kept {
			return err
		}
		t.Close() // which also ends follow
		if err == nil || heard || !t.used || !whole || !c.repeatable() || !c.use(nil) {
			return err
		} // else t had been given up before the request came
	}
}

// respond reads t's response and passes it on. kept: t is for another request
// now. heard: something came.
func (c *appConn) respond(t *target) (kept, heard bool, err error) {
	r := &c.resp
	for {
		if err := r.head.read(t.r, maxAnswerHead); err != nil {
			return false, heard || len(r.raw) > 0, err
		}
		heard = true
		if err := r.understand(); err != nil {
			return false, heard, err
		}
		t.bound = t.bound || r.binds
		switch {
		case r.status == 101 && c.websocket && r.websocket:
			return false, heard, c.switchProtocols(t)
		case r.status == 101:
			return false, heard, errors.New("the target switched to a protocol that was not asked for")
		case r.status >= 200:
			kept, err := c.deliver(t)
			return kept, heard, err
		case !c.old: // interim (RFC 9110 section 15.2); HTTP/1.0 has none
			if _, err := c.Write(append(r.append(nil), "\r\n"...)); err != nil {
				return false, heard, errAppGone
			}
		}
	}
}

// deliver passes the response on whose head has been read; as in respond.
func (c *appConn) deliver(t *target) (kept bool, err error) {
	r := &c.resp
	length := r.length
	if r.chunked || len(r.codings) > 0 {
		length = -1
	}
	hasBody := r.hasBodyAt(string(c.method))
	// A body of which only the end of the connection tells where it ends is
	// chunked for apps that know how, so that they can tell the end from a cut.
	chunked := hasBody && length < 0 && !c.old
	c.untilClose = hasBody && length < 0 && c.old
	c.final = c.last() || c.untilClose || !c.uploaded.Load()

	head := r.append(c.in[:0])
	switch {
	case chunked && len(r.codings) > 0:
		head = fmt.Appendf(head, "Transfer-Encoding: %s, chunked\r\n", r.codings)
	case chunked:
		head = append(head, "Transfer-Encoding: chunked\r\n"...)
	case length >= 0 && r.status != 204:
		head = fmt.Appendf(head, "Content-Length: %d\r\n", length)
	}
	switch {
	case c.final:
		head = append(head, "Connection: close\r\n"...)
	case c.old:
		head = append(head, "Connection: keep-alive\r\n"...)
	}
	head = append(head, "\r\n"...)
	c.in = head
	c.answered = true
	if !hasBody {
		length = 0
	}
	t.body.reset(t.r, hasBody && r.chunked, false, length)
	framed := !hasBody || r.chunked || length >= 0
	doubtful := r.coded && (r.old || r.length >= 0) // RFC 9112 sections 6.1 and 6.3
	err = c.s.copyBody(c.TCPConn, head, &t.body, chunked, func() {
		// Before the app has the end and sends its next request.
		if framed && !doubtful && !r.close && (!r.old || r.keepAlive) && c.uploaded.Load() && t.r.Buffered() == 0 && c.use(nil) {
			c.keepTarget(t)
			kept = true
		}
	})
	if errors.Is(err, errSink) {
		err = errAppGone
	}
	return kept, err
}

// copyBody sends head and then b, at once what has come: the next read may wait
// long, as in a stream of events. ended is called when all of b has come, before
// the last of it is sent. The error is errSink if w is what failed.
func (s *server) copyBody(w io.Writer, head []byte, b *body, chunked bool, ended func()) error {
	buf := s.chunks.Get().(*chunk)
	defer s.chunks.Put(buf)
	if !buf.put(head) {
		if _, err := w.Write(head); err != nil {
			return fmt.Errorf("%w: %w", errSink, err)
		}
	}
	for {
		if b.r.Buffered() == 0 && !b.ended {
			if err := buf.flush(w); err != nil {
				return fmt.Errorf("%w: %w", errSink, err)
			}
		}
		_, err := buf.fill(b, chunked)
		if err == nil && b.ended {
			err = io.EOF
		}
		if err == io.EOF {
			if chunked {
				buf.last(&b.trailer)
			}
			ended()
		}
		if err := buf.flush(w); err != nil {
			return fmt.Errorf("%w: %w", errSink, err)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// errSink is of who should have taken what was copied.
var errSink = errors.New("cannot pass on what came")

// takeBody adds the request's body to out if all of it has come, and reports
// whether out is the whole request.
func (c *appConn) takeBody() bool {
	if c.chunked {
		return false
	}
	n := max(c.length, 0)
	if n > int64(c.buf.Buffered()) {
		return false
	}
	b, _ := c.buf.Peek(int(n))
	c.out = append(c.out, b...)
	_, _ = c.buf.Discard(int(n))
	return true
}

// use makes t the connection that leave closes; false if the app has gone.
func (c *appConn) use(t *target) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.using = t
	return c.left == nil
}

// leave ends the exchange because of the app. It may be called by follow only.
func (c *appConn) leave(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == nil {
		c.left = err
		close(c.gone)
	}
	if c.using != nil {
		c.using.Close()
	}
}

// follow sends the body as it comes, then watches the app.
func (c *appConn) follow(t *target) {
	c.body.reset(c.buf, c.chunked, true, c.length)
	err := c.s.copyBody(t, nil, &c.body, c.chunked, func() {})
	switch {
	case err == nil:
		c.uploaded.Store(true)
		c.watch()
	case errors.Is(err, errSink): // the target takes no more; it may still answer
	case errors.Is(err, os.ErrDeadlineExceeded): // unfollow
	case errors.Is(err, errChunk), errors.Is(err, errField), errors.Is(err, errHeadTooLong):
		c.leave(malformed("malformed body: %v", err))
	default:
		c.leave(errAppGone)
	}
}

// watchSoon has watch begin in a while, if the exchange takes so long.
func (c *appConn) watchSoon() {
	c.following.Add(1)
	if c.timer == nil {
		c.timer = time.AfterFunc(watchAfter, func() {
			defer c.following.Done()
			c.watch()
		})
	} else {
		c.timer.Reset(watchAfter)
	}
	c.waiting = true
}

// watch waits until the app says something else or goes.
func (c *appConn) watch() {
	_, err := c.buf.Peek(1)
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
	case errors.Is(err, io.EOF):
		c.awaitLeave()
	default:
		c.leave(errAppGone)
	}
}

// awaitLeave watches an app that has closed its side. It may wait for the answer
// all the same, as by shutdown(2), or have closed the connection: that can be
// seen only by its socket, which belongs to nobody then.
func (c *appConn) awaitLeave() {
	over := make(chan struct{})
	c.mu.Lock()
	c.over = over
	done := c.done
	c.mu.Unlock()
	for c.s.opts.User != nil && !done {
		if _, there := c.s.opts.User(flow.TCP, c.addr(), c.door()); !there {
			c.leave(errAppGone)
			return
		}
		select {
		case <-over:
			return
		case <-time.After(orphanCheck):
		}
	}
}

// unfollow ends follow and watch; it returns what leave was told.
func (c *appConn) unfollow() error {
	if c.waiting && c.timer.Stop() {
		c.following.Done()
	} else {
		c.SetReadDeadline(time.Unix(1, 0))
		c.mu.Lock()
		c.done = true
		if c.over != nil {
			close(c.over)
			c.over = nil
		}
		c.mu.Unlock()
		c.following.Wait()
		c.SetReadDeadline(time.Time{})
	}
	c.waiting = false
	c.mu.Lock()
	defer c.mu.Unlock()
	c.using, c.done = nil, false
	return c.left
}

// switchProtocols carries a WebSocket until both its directions have ended.
func (c *appConn) switchProtocols(t *target) error {
	if err := c.unfollow(); err != nil {
		return err
	}
	c.answered, c.final = true, true
	head := append(c.resp.append(nil), "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...)
	if _, err := c.Write(head); err != nil {
		return errAppGone
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, err := t.Write(c.rest())
		if err == nil {
			_, err = io.Copy(t.pipe, c.TCPConn)
		}
		if err != nil {
			t.Close()
		} else {
			t.CloseWrite()
		}
	})
	if _, err := io.Copy(c.TCPConn, t.r); err != nil {
		c.SetLinger(0)
		c.Close()
	} else {
		c.CloseWrite()
	}
	up.Wait()
	c.Close()
	return nil
}
