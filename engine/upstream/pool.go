package upstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	poolMax      = 64                     // connections kept, if Options say nothing
	maxRefills   = 16                     // dials ahead of demand at a time
	firstBackoff = 250 * time.Millisecond // between refills of a proxy that fails, doubling …
	lastBackoff  = 30 * time.Second       // … up to this
	agingShare   = 0.85                   // of its life, after which a connection's successor is dialled
)

// pool keeps connections to one proxy ready for their request: through TCP,
// TLS, and SOCKS5's negotiation and authentication.
//
//	take ─► idle, newest first ─► alive? ─► the flow
//	  │          ▲     └ dead, too old ─► closed; idleLimit learns
//	  └ empty ─► waiting ◄─┐
//	             refill ───┴─► idle        one dial for each who waits, and as many
//	             (dial)                    ahead as demand says; whoever waits is first
//
// Its goroutines are dials, each as long as one takes, and tend, as long as
// there is something to look after. close waits for them.
type pool struct {
	open  func(ctx context.Context) (*warm, error) // makes one; blocks as long as dialling does
	max   int
	stats *counters
	spawn func(func(context.Context)) // runs f until it returns; its context ends with close
	end   context.CancelFunc
	work  sync.WaitGroup

	mu      sync.Mutex
	idle    []*warm       // guarded by mu; oldest first
	aging   int           // guarded by mu; how many of these should have successors, see sweep
	waiting []chan taken  // guarded by mu; first come first served, each with room for one
	dialing int           // guarded by mu
	epoch   int           // guarded by mu; counts flushes
	tending bool          // guarded by mu
	closed  bool          // guarded by mu
	demand  demand        // guarded by mu
	limit   idleLimit     // guarded by mu
	retryAt time.Time     // guarded by mu; no refill before
	backoff time.Duration // guarded by mu; after the next failure
}

type taken struct {
	w   *warm
	err error
}

func newPool(max int, stats *counters, open func(context.Context) (*warm, error)) *pool {
	if max == 0 {
		max = poolMax
	}
	p := &pool{open: open, max: max, stats: stats}
	life, cancel := context.WithCancel(context.Background())
	p.end = cancel
	p.spawn = func(f func(context.Context)) {
		p.work.Add(1)
		go func() {
			defer p.work.Done()
			f(life)
		}()
	}
	return p
}

func errPoolClosed() error { return fault(Refused, fmt.Errorf("upstream: %w", net.ErrClosed), "") }

// take gives a connection: the newest idle one that lives, or else the next
// that is ready, of which one is dialled for this caller. fresh asks for one
// that has never been idle. It blocks until ctx ends at the latest.
func (p *pool) take(ctx context.Context, fresh bool) (*warm, error) {
	now := time.Now()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errPoolClosed()
	}
	if !fresh {
		p.demand.note(now)
		if w := p.popLocked(now); w != nil {
			p.refillLocked(now)
			p.mu.Unlock()
			return w, nil
		}
	}
	if p.demand.rush(now) {
		epoch := p.epoch
		p.mu.Unlock()
		return p.dialHere(ctx, now, epoch)
	}
	ready := make(chan taken, 1)
	p.waiting = append(p.waiting, ready)
	p.refillLocked(now)
	p.mu.Unlock()
	select {
	case t := <-ready:
		if t.w != nil {
			t.w.waited = time.Since(now)
		}
		return t.w, t.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.waiting = slices.DeleteFunc(p.waiting, func(c chan taken) bool { return c == ready })
	p.mu.Unlock()
	select {
	case t := <-ready: // at the last moment
		if t.w != nil {
			p.put(t.w)
		}
	default:
	}
	return nil, fault(Timeout, fmt.Errorf("connect: %w", context.Cause(ctx)), "no answer: check host, port and firewall")
}

// dialHere makes a connection for the caller alone.
func (p *pool) dialHere(ctx context.Context, begin time.Time, epoch int) (*warm, error) {
	w, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	w.epoch, w.waited = epoch, time.Since(begin)
	return w, nil
}

// popLocked takes the newest idle connection that lives. If the newest does
// not, all are looked at: what ended one may have ended many.
func (p *pool) popLocked(now time.Time) *warm {
	swept := false
	for n := len(p.idle); n > 0; n = len(p.idle) {
		w := p.idle[n-1]
		if !swept && canPeek && !w.alive() {
			p.sweepLocked(now)
			swept = true
			continue
		}
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.aging = min(p.aging, n-1)
		p.stats.warm.Store(int64(n - 1))
		w.age = now.Sub(w.since)
		if w.age < w.life(&p.limit) && (canPeek || w.alive()) {
			w.pooled = true
			return w
		}
		w.abort()
	}
	return nil
}

// add gives the pool a connection that was made elsewhere; epoch was now when
// its dial began.
func (p *pool) add(w *warm, epoch int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.epoch = epoch
	p.putLocked(w)
}

// now is the epoch.
func (p *pool) now() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

// put adds a connection that is ready; one that has no place is closed.
func (p *pool) put(w *warm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.putLocked(w)
	p.refillLocked(time.Now())
}

func (p *pool) putLocked(w *warm) {
	if w.epoch != p.epoch {
		w.abort()
		return
	}
	if len(p.waiting) > 0 {
		p.waiting[0] <- taken{w: w}
		p.waiting = p.waiting[1:]
		return
	}
	if p.closed || len(p.idle) >= p.max {
		w.abort()
		return
	}
	p.idle = append(p.idle, w)
	p.stats.warm.Store(int64(len(p.idle)))
	if !p.tending {
		p.tending = true
		p.spawn(p.tend)
	}
}

// refillLocked starts the dials that are wanted.
func (p *pool) refillLocked(now time.Time) {
	if p.closed {
		return
	}
	for len(p.waiting) > p.dialing {
		p.dialLocked()
	}
	if now.Before(p.retryAt) || p.demand.rush(now) {
		return
	}
	want := min(p.demand.stock(now, p.limit.life()), p.max)
	for p.dialing-len(p.waiting) < maxRefills && len(p.idle)-p.aging+p.dialing-len(p.waiting) < want {
		p.dialLocked()
	}
}

func (p *pool) dialLocked() {
	p.dialing++
	epoch := p.epoch
	p.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, setupTimeout)
		defer cancel()
		w, err := p.open(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		if epoch != p.epoch { // by the network of before: nobody waits for it
			if err == nil {
				w.abort()
			}
			return
		}
		p.dialing--
		now := time.Now()
		if err != nil {
			p.failedLocked(now, err)
		} else {
			p.backoff, p.retryAt = 0, time.Time{}
			p.demand.took(w.dial + w.tls + w.greet)
			w.epoch = epoch
			p.putLocked(w)
		}
		p.refillLocked(now)
	})
}

// failedLocked tells one of those who wait, unless there is still a dial for
// each, and puts off refills.
func (p *pool) failedLocked(now time.Time, err error) {
	p.backoff = min(max(2*p.backoff, firstBackoff), lastBackoff)
	p.retryAt = now.Add(p.backoff/2 + rand.N(p.backoff))
	if p.closed {
		err = errPoolClosed()
	}
	if len(p.waiting) > p.dialing {
		p.waiting[0] <- taken{err: err}
		p.waiting = p.waiting[1:]
	}
}

// tend looks after idle connections until there are none.
func (p *pool) tend(ctx context.Context) {
	timer := time.NewTimer(minSweep)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return // close takes care of what is idle
		case <-timer.C:
		}
		p.mu.Lock()
		now := time.Now()
		p.sweepLocked(now)
		p.refillLocked(now)
		if len(p.idle) == 0 && p.dialing == 0 {
			p.tending = false
			p.mu.Unlock()
			return
		}
		timer.Reset(p.limit.sweep())
		p.mu.Unlock()
	}
}

// sweepLocked closes what is dead, too old or not wanted any more, and learns
// from what the proxy has closed.
func (p *pool) sweepLocked(now time.Time) {
	p.limit.grow(now)
	surplus := len(p.idle) - p.aging - min(p.demand.stock(now, p.limit.life()), p.max)
	live, dead := p.idle[:0], 0
	var oldestDead, youngestDead, oldestLive time.Duration
	p.aging = 0
	for _, w := range p.idle { // oldest first
		age, life := now.Sub(w.since), w.life(&p.limit)
		switch {
		case canPeek && !w.alive():
			dead++
			oldestDead, youngestDead = max(oldestDead, age), age
		case age >= life:
		case surplus > 0:
			surplus--
		default:
			if age > time.Duration(float64(life)*agingShare) {
				p.aging++
			}
			oldestLive = max(oldestLive, age)
			live = append(live, w)
			continue
		}
		w.abort()
	}
	if oldestLive > 0 && canPeek {
		p.limit.lives(now, oldestLive)
	}
	// A proxy that keeps connections for so long loses the oldest, or all that
	// are as old. Any others: it was restarted, or was told to.
	if dead > 0 && oldestLive < youngestDead && (len(live) > 0 || oldestDead < 2*youngestDead) {
		p.limit.lost(now, youngestDead)
	}
	clear(p.idle[len(live):])
	p.idle = live
	p.stats.warm.Store(int64(len(live)))
}

// lost is told of a connection that was idle for age and then of no use to a
// flow, which another was. silent: it did not even say so, so that the others
// of its age cannot be trusted either.
func (p *pool) lost(age time.Duration, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.limit.lost(now, age)
	if !silent {
		return
	}
	for len(p.idle) > 0 && now.Sub(p.idle[0].since) >= age {
		p.idle[0].abort()
		p.idle = p.idle[1:]
		p.aging = max(p.aging-1, 0)
	}
	p.stats.warm.Store(int64(len(p.idle)))
	p.refillLocked(now)
}

// prime has the pool get ready for flows that are about to come.
func (p *pool) prime() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.demand.note(now)
	p.refillLocked(now)
}

// flush closes what is idle and pools nothing whose dial has begun before. It
// makes new ones if again is true.
func (p *pool) flush(again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	p.dialing = 0 // who waits gets new ones
	p.dropLocked()
	p.backoff, p.retryAt = 0, time.Time{}
	if !again {
		p.demand.last = time.Time{}
	}
	p.refillLocked(time.Now())
}

func (p *pool) dropLocked() {
	for _, w := range p.idle {
		w.abort()
	}
	p.idle, p.aging = nil, 0
	p.stats.warm.Store(0)
}

// close ends the pool and waits for its goroutines. It is idempotent.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.dropLocked()
	p.mu.Unlock()
	p.end()
	p.work.Wait()
}
