package resolve

import (
	"context"
	"sync"
	"time"
)

// Figures of Run.
const (
	rebuildEvery = 30 * time.Second
	debounce     = 100 * time.Millisecond // between a report and the ranking it changes
	probeEvery   = 5 * time.Minute        // of members that no flow has measured
	probeAtOnce  = 4
	probeMax     = 32 // begun in one round
	probeLimit   = 10 * time.Second
)

// Run keeps the ranking, the circuits, the sessions and the lists fresh until
// ctx ends, and returns nil then. It is called once. Without it Pick goes on
// with what there is.
func (r *Resolver) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, l := range r.lists {
		wg.Go(func() { l.run(ctx) })
	}
	probes := make(chan struct{}, probeAtOnce)
	due := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.refill:
			for _, m := range r.snap.Load().members {
				if m.ids != nil {
					m.ids.refill()
				}
			}
		case <-r.wake:
			if soon := time.Now().Add(debounce); soon.Before(due) {
				due = soon
				timer.Reset(debounce)
			}
		case <-timer.C:
			next, toProbe := r.rebuild(time.Now())
			for _, m := range toProbe {
				wg.Go(func() { r.probe(ctx, m, probes) })
			}
			due = next
			timer.Reset(max(time.Until(due), debounce))
		}
	}
}

// rebuild makes a new snapshot of what is known. It returns when the next is
// due, and which members want a Probe.
func (r *Resolver) rebuild(now time.Time) (next time.Time, toProbe []*member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next = now.Add(rebuildEvery)
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	resting := r.opt.Resting != nil && r.opt.Resting()
	for _, m := range r.members {
		at, waits := m.reopen(now, r.opt.Probe != nil)
		earlier(at)
		if m.ids != nil {
			earlier(m.ids.sweep(now))
		}
		if (waits || r.stale(m, now)) && !resting && len(toProbe) < probeMax && m.probing.CompareAndSwap(false, true) {
			toProbe = append(toProbe, m)
		}
	}
	r.snap.Store(rank(r.opt.Policy, r.members, r.snap.Load(), now))
	return next, toProbe
}

// stale says that the ranking needs a measurement that no flow has made.
func (r *Resolver) stale(m *member, now time.Time) bool {
	if r.opt.Probe == nil || r.opt.Policy != Latency || len(r.members) < 2 || m.gate.Load() != closed {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Sub(m.health.measured) >= probeEvery && now.Sub(m.health.probed) >= probeEvery
}

// probe has the owner connect to m's gateway and takes the result as a flow's.
func (r *Resolver) probe(ctx context.Context, m *member, slots chan struct{}) {
	defer m.probing.Store(false)
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return
	}
	m.mu.Lock()
	m.health.probed = time.Now()
	m.mu.Unlock()
	e := m.static
	if e == nil {
		e = m.ids.fresh()
		e.OneShot = true
	}
	bounded, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	took, err := r.opt.Probe(bounded, e)
	if ctx.Err() != nil {
		return
	}
	o := Outcome{Kind: Success, Connect: took}
	if err != nil {
		o = Outcome{Kind: Refused, Text: err.Error()}
		if bounded.Err() != nil {
			o.Kind = Timeout
		}
	}
	if m.probed(time.Now(), o, r.rand) {
		r.wakeUp()
	}
}

// probed is record for the outcome of a Probe, which alone may close an open
// circuit whose time has come, or keep it open.
func (m *member) probed(now time.Time, o Outcome, rand func() uint64) bool {
	m.mu.Lock()
	if m.gate.Load() == open && !now.Before(m.health.until) {
		if o.Kind != Success && m.health.cause == Auth {
			o.Kind = Auth // it still is: do not come back sooner than before
		}
		m.gate.Store(half)
	}
	m.mu.Unlock()
	return m.record(now, o, rand)
}
