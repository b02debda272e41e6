package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"
)

// Relays between kernel sockets rest when nothing has moved for a while: both
// pumps end, and one goroutine for all of them watches the sockets. With tens
// of thousands of idle flows the pumps' stacks are what memory would go into.
//
//	sweep ─kick─► both pumps' reads fail ─► rest ─┬─ both there: they end, wait
//	                                              └─ the other is busy: go on

const (
	// restAfter is how long nothing has moved when a relay rests: twice that
	// at most.
	restAfter = 500 * time.Millisecond
	// restWithin is how long one pump waits for the other to rest as well. Till
	// then its own direction stands still, so it is short.
	restWithin = 20 * time.Millisecond
	// freeAfter is how many relays have to come to rest, and an eighth of those
	// that do so, before the memory of their pumps is given back to the system:
	// stacks shrink in garbage collections only, and an idle process makes none.
	freeAfter = 256
	// freePause bounds what that costs: a fiftieth of the time.
	freePause = 50
)

// errRest ends a pump whose relay rests.
var errRest = errors.New("the relay rests")

// past is a deadline that is over.
var past = time.Unix(1, 0)

// rest is where the two pumps of a relay meet. The zero value is ready.
type rest struct {
	mu    sync.Mutex
	there int           // guarded by mu; pumps that have come
	both  chan struct{} // guarded by mu; closed when both have
}

// rest reports whether both pumps may end now: if not, this one must go on.
func (p *pump) rest() bool {
	if p.half.Load() {
		return false // the other pump is no more, or needs this one
	}
	r := &p.resting
	r.mu.Lock()
	if r.there++; r.there == 2 {
		close(r.both)
		r.mu.Unlock()
		return true
	}
	both := make(chan struct{})
	r.both = both
	r.mu.Unlock()
	t := time.NewTimer(restWithin)
	defer t.Stop()
	select {
	case <-both:
		return true
	case <-t.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.there == 2 {
		return true
	}
	r.there = 0
	return false
}

// wait blocks while the relay rests; false if ctx has ended. Where one
// direction has ended, the other does not rest.
func (r *relay) wait(ctx context.Context) bool {
	r.resting.mu.Lock()
	rests := r.resting.there == 2
	r.resting.there = 0
	r.resting.mu.Unlock()
	if lot := r.h.lot.Load(); rests && lot != nil {
		app, _ := r.down.dst.(*net.TCPConn)
		up, _ := r.up.dst.(*net.TCPConn)
		r.parked.Store(true)
		r.h.resting.Add(1)
		r.h.rested.Add(1)
		defer func() {
			r.h.resting.Add(-1)
			r.parked.Store(false)
		}()
		if !lot.wait(ctx, app, up) {
			return false
		}
	}
	r.up.resume()
	r.down.resume()
	return true
}

// kick asks both pumps to rest. It may get lost: then they do not.
func (r *relay) kick() {
	if r.parked.Load() || r.half.Load() {
		return
	}
	for _, p := range []*pump{&r.up, &r.down} {
		if _, tcp := p.src.(*net.TCPConn); !tcp {
			return
		}
	}
	for _, p := range []*pump{&r.up, &r.down} {
		_ = p.src.SetReadDeadline(past)
	}
}

// Run frees what idle flows hold, until ctx ends. Flows are carried without it
// as well.
func (h *Handler) Run(ctx context.Context) error {
	if !canPark {
		<-ctx.Done()
		return nil
	}
	lot, err := newLot()
	if err != nil {
		return fmt.Errorf("rest idle flows: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(lot.watch)
	h.lot.Store(lot)
	defer func() {
		h.lot.Store(nil)
		lot.close()
		wg.Wait()
	}()
	t := time.NewTicker(restAfter)
	defer t.Stop()
	var freed int64 // relays that had come to rest when memory was last given back
	var quiet time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			h.sweep(&wg)
		}
		if now := h.rested.Load(); now-freed >= max(freeAfter, h.resting.Load()/8) && time.Now().After(quiet) {
			freed = now
			begin := time.Now()
			debug.FreeOSMemory()
			quiet = time.Now().Add(freePause * time.Since(begin))
		}
	}
}

// sweep looks at the relays through which nothing has moved since the last
// sweep: those that are open both ways may rest, the others may be over.
func (h *Handler) sweep(wg *sync.WaitGroup) {
	h.live.Range(func(_, v any) bool {
		l := v.(*live)
		r := l.relay.Load()
		if r == nil {
			return true
		}
		moved := l.bytes.up.Load() + l.bytes.down.Load()
		if moved == l.moved {
			if p := r.deaf(); p != nil {
				wg.Go(func() { r.finish(p.src, p.dst) })
			} else {
				r.kick()
			}
		}
		l.moved = moved
		return true
	})
}

// deaf is the pump of a half-closed relay whose src has ended and is no more
// since: nobody would take what comes the other way, nor does anybody read from
// src to find out. Keep-alive probes tell the kernel. Otherwise nil.
func (r *relay) deaf() *pump {
	if !r.half.Load() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range []*pump{&r.up, &r.down} {
		if p.ended && !p.other.ended && gone(p.src) {
			return p
		}
	}
	return nil
}
