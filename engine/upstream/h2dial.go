package upstream

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/upstream/h2"
)

const (
	h2Dials     = 8                      // at once
	h2Spares    = 8                      // sessions, beyond which no more are opened because of congestion
	h2Heavy     = 1 << 20                // bytes per second that make a session one for bulk
	h2IdleExtra = time.Minute            // after which an idle session is closed, if it is not the only one
	h2KeepFor   = 2 * time.Minute        // after the last flow: one session is kept open
	h2TendEvery = 500 * time.Millisecond // while that is so
	h2LimitFor  = 10 * time.Minute       // what was learnt about a proxy's limit holds
	maxUnsent   = 128 << 10              // bytes in a socket that are not on their way yet
)

// dialing is a new session in the making.
type dialing struct {
	cancel context.CancelFunc
	epoch  int
	done   chan struct{} // closed when the rest is set
	trace  Trace

	// Guarded by sessions.mu until done is closed.
	owned   bool // a flow waits for it
	session *h2.Session
	conn    *tlsConn // HTTP/1.1
	err     error
}

// wantLocked says that more sessions have to be dialled for those who wait.
func (p *sessions) wantLocked() bool {
	if len(p.dials) == 0 {
		return len(p.open) < h2Sessions
	}
	each := p.places // nobody knows before the first has said it
	if p.limit > 0 {
		each = min(max(each, 1), p.limit)
	}
	return each > 0 && p.waiting >= len(p.dials)*each && len(p.dials) < h2Dials && len(p.open)+len(p.dials) < h2Sessions
}

// dialLocked starts a dial, which one flow owns or nobody does.
func (p *sessions) dialLocked(limit time.Duration, owned bool) *dialing {
	d := &dialing{done: make(chan struct{}), owned: owned, epoch: p.epoch}
	ctx, cancel := context.WithTimeout(WithTrace(context.Background(), &d.trace), setupTimeout)
	d.cancel = cancel
	if p.dials == nil {
		p.dials = make(map[*dialing]bool)
	}
	p.dials[d] = true
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		defer cancel()
		c, isH2, err := p.dial(ctx, limit)
		p.finish(d, c, isH2, err)
		if d.session != nil {
			select { // SETTINGS say how many flows it takes
			case <-d.session.Ready():
			case <-d.session.Done():
			case <-ctx.Done():
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if d.session != nil {
			l := d.session.Load()
			p.places = max(1, l.Free+l.Streams)
		}
		delete(p.dials, d)
		if p.changed != nil {
			close(p.changed)
			p.changed = nil
		}
	}()
	return d
}

// finish takes in what a dial has led to.
func (p *sessions) finish(d *dialing, c *tlsConn, isH2 bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(d.done)
	d.err = err
	if err == nil && p.closed {
		c.Close()
		d.err = fault(Refused, fmt.Errorf("upstream: %w", net.ErrClosed), "")
	}
	if d.err != nil {
		if !d.owned {
			p.retry.fail(time.Now())
		}
		return
	}
	p.retry = pause{}
	p.http1 = !isH2
	switch {
	case d.epoch != p.epoch && !d.owned: // by the network of before
		c.Close()
	case isH2:
		limitUnsent(c.tcp, maxUnsent)
		d.session = h2.New(c)
		d.session.Limit(p.limit)
		if d.owned {
			d.session.Reserve() // a new session has a place, or its end shows in Open
		}
		p.open = append(p.open, d.session)
		if d.epoch != p.epoch {
			d.session.Retire() // its flow asks another
		}
	case d.owned:
		d.conn = c
	default:
		c.Close()
	}
}

// own waits for a dial that was made for this flow.
func (p *sessions) own(ctx context.Context, d *dialing) (*h2.Session, *tlsConn, error) {
	select {
	case <-d.done:
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case <-d.done: // at the same time
		default:
			d.owned = false
			return nil, nil, talkFault("dial", context.Cause(ctx))
		}
	}
	tr := traceOf(ctx)
	tr.Reused, tr.Dial, tr.TLS = false, d.trace.Dial, d.trace.TLS
	return d.session, d.conn, d.err
}

// isLight says that a session has nothing much to do.
func isLight(l h2.Load) bool {
	return !l.Congested && l.Rate < h2Heavy && l.Streams < 3*l.Free
}

// startLocked starts run.
func (p *sessions) startLocked() {
	if p.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.wake = cancel, make(chan struct{}, 1)
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		p.run(ctx)
	}()
}

// run keeps the number of sessions right until ctx ends.
func (p *sessions) run(ctx context.Context) {
	timer := time.NewTimer(h2TendEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		p.mu.Lock()
		again := p.tendLocked(time.Now())
		p.mu.Unlock()
		timer.Reset(again)
	}
}

// tendLocked does what is due and says when to look again.
func (p *sessions) tendLocked(now time.Time) time.Duration {
	p.sweepLocked()
	if !p.limited.IsZero() && now.Sub(p.limited) > h2LimitFor {
		p.limited = time.Time{}
		p.limitLocked(0)
	}
	recent := now.Sub(p.used) < h2KeepFor
	if recent && !p.http1 && !p.closed && len(p.dials) == 0 && p.retry.over(now) && p.spareLocked() {
		p.dialLocked(tlsTimeout, false)
	}
	if recent || len(p.open) > 1 {
		return h2TendEvery
	}
	return h2IdleExtra
}

// spareLocked says that a session is to be opened although no flow waits for
// it: there is none, or the next flow would find all of them busy.
func (p *sessions) spareLocked() bool {
	usable, full := 0, 0
	for _, s := range p.open {
		if !s.Usable() {
			continue
		}
		l := s.Load()
		if isLight(l) {
			return false
		}
		usable++
		if l.Streams >= 3*l.Free {
			full++
		}
	}
	return usable-full < h2Spares && len(p.open) < h2Sessions
}

// sweepLocked forgets ended sessions, and closes idle ones but for the first.
// A session that drains stays until its streams have ended.
func (p *sessions) sweepLocked() {
	kept, usable := p.open[:0], 0
	for _, s := range p.open {
		select {
		case <-s.Done():
			_ = s.Close() // waits for its goroutines, which are ending
			continue
		default:
		}
		if usable > 0 && s.Idle() > h2IdleExtra {
			_ = s.Close()
			continue
		}
		if s.Usable() {
			usable++
		}
		kept = append(kept, s)
	}
	clear(p.open[len(kept):])
	p.open = kept
}

// pause grows from a second to a minute while something keeps failing.
type pause struct {
	length time.Duration
	until  time.Time
}

func (b *pause) fail(now time.Time) {
	b.length = min(max(2*b.length, time.Second), time.Minute)
	b.until = now.Add(b.length)
}

func (b *pause) over(now time.Time) bool { return !now.Before(b.until) }
