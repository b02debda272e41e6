package upstream

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// warm is a connection to a proxy that is ready for its one request. It has
// one user at a time.
type warm struct {
	conn   flow.StreamConn // a *net.TCPConn or *tlsConn
	tcp    *net.TCPConn    // under conn
	eyes   *peeker         // sees tcp
	isDead func() bool     // in place of looking at tcp, for tests

	since            time.Time     // when it became ready
	dial, tls, greet time.Duration // what it took to make it
	spread           float64       // 0 to 1: those made together are not replaced together
	epoch            int           // of the pool, when its dial began

	pooled bool          // it was idle before its user got it …
	age    time.Duration // … for so long
	waited time.Duration // by its user
}

// newWarm takes over c, which has just become ready.
func newWarm(c flow.StreamConn, tcp *net.TCPConn, tr *Trace, greet time.Duration) *warm {
	return &warm{conn: c, tcp: tcp, eyes: newPeeker(tcp), since: time.Now(), dial: tr.Dial, tls: tr.TLS, greet: greet, spread: rand.Float64()}
}

// life is how long it may be idle.
func (w *warm) life(l *idleLimit) time.Duration {
	return time.Duration(float64(l.life()) * (1 - 0.15*w.spread))
}

// alive does not block. A proxy that has said something unasked is about to
// hang up.
func (w *warm) alive() bool {
	if w.isDead != nil {
		return !w.isDead()
	}
	_, overTLS := w.conn.(*tlsConn)
	return w.eyes.alive(overTLS) // TLS has tickets that nobody has read yet (RFC 8446 section 4.6.1)
}

// abort closes the connection without a word.
func (w *warm) abort() {
	if w.tcp == nil {
		_ = w.conn.Close()
		return
	}
	abort(w.tcp)
}

// note adds to a trace what a flow waited for to get w.
func (w *warm) note(tr *Trace) {
	if w.pooled {
		tr.Warm, tr.Reused = true, true
		return
	}
	// It may have been under way already.
	left := w.waited
	part := func(of time.Duration) time.Duration {
		d := min(of, left)
		left -= d
		return d
	}
	tr.Connect = part(w.greet)
	tr.TLS = part(w.tls)
	tr.Dial = part(w.dial)
	tr.Warm, tr.Reused = false, false
}

// guard makes every read and write on a connection fail when a context ends.
type guard struct {
	c    net.Conn
	stop func() bool
	done chan struct{} // closed when the context's end has been dealt with

	mu   sync.Mutex
	over bool // guarded by mu; the context has ended
}

// guardConn also limits how long reads and writes may take altogether. release
// is to be called exactly once.
func guardConn(ctx context.Context, c net.Conn, limit time.Duration) *guard {
	g := &guard{c: c, done: make(chan struct{})}
	_ = c.SetDeadline(deadlineOf(ctx, limit))
	g.stop = context.AfterFunc(ctx, func() {
		g.mu.Lock()
		g.over = true
		_ = c.SetDeadline(time.Unix(1, 0))
		g.mu.Unlock()
		close(g.done)
	})
	return g
}

func deadlineOf(ctx context.Context, limit time.Duration) time.Time {
	deadline := time.Now().Add(limit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	return deadline
}

// readBy changes the limit of reads alone.
func (g *guard) readBy(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		_ = g.c.SetReadDeadline(t)
	}
}

// release lifts the limits and reports whether the connection is still whole.
func (g *guard) release() bool {
	if !g.stop() {
		<-g.done
		return false
	}
	return g.c.SetDeadline(time.Time{}) == nil
}

// until is guardConn for those who only need its end.
func until(ctx context.Context, c net.Conn, limit time.Duration) (release func() bool) {
	return guardConn(ctx, c, limit).release
}
