package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// groupDial is the search for one flow's way.
type groupDial struct {
	g       *group
	a       ask
	key     resolve.Key
	begin   time.Time
	picking time.Duration
	tried   []*resolve.Endpoint
	running int
	again   bool // a provider's answer has led to another try already
	beside  bool // more than one member is being tried: a.once is taken, by nobody
	done    chan *tryout
}

func (d *groupDial) run(ctx context.Context) (*tryout, error) {
	d.begin = time.Now()
	e, err := d.pick()
	d.picking = time.Since(d.begin)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var won *tryout
	defer func() {
		cancel()
		d.drain(won)
	}()
	hedge := d.start(ctx, e)
	timer := time.NewTimer(hedge)
	defer timer.Stop()
	var last error
	for d.running > 0 {
		select {
		case at := <-d.done:
			d.running--
			if at.err == nil {
				won = at
				d.won(at)
				return at, nil
			}
			if ctx.Err() != nil {
				d.g.report(at, resolve.Outcome{Kind: resolve.Canceled})
				return nil, at.err
			}
			next, err := d.failed(at)
			last = err
			if next != nil && len(d.tried) < groupTries {
				timer.Reset(d.start(ctx, next))
			}
		case <-timer.C:
			if len(d.tried) >= groupTries || !d.mayHedge() {
				continue
			}
			if next, err := d.other(); err == nil {
				timer.Reset(d.start(ctx, next))
			}
		}
	}
	return nil, last
}

// drain waits for the dials that have lost; their context has ended.
func (d *groupDial) drain(won *tryout) {
	for ; d.running > 0; d.running-- { // each ends at once now
		at := <-d.done
		if at.c != nil {
			_ = at.c.Close()
		}
		o := resolve.Outcome{Kind: resolve.Canceled}
		if won != nil && at.began.Before(won.began) {
			o = resolve.Outcome{Kind: resolve.Slow, Connect: time.Since(at.began), Text: "another was faster"}
		}
		d.g.report(at, o)
	}
}

// mayHedge says that another member may be tried beside those that are, and
// keeps all of them from sending ahead what may be on one way only.
func (d *groupDial) mayHedge() bool {
	if !d.beside && repeatOf(d.a.early) == afterFailure {
		d.beside = d.a.once.take()
		return d.beside
	}
	return true
}

// start dials by e and says how long to wait before another is tried too.
func (d *groupDial) start(ctx context.Context, e *resolve.Endpoint) (hedge time.Duration) {
	d.tried = append(d.tried, e)
	d.g.r.Begin(e)
	if d.running++; d.running == 1 && repeatOf(d.a.early) == afterFailure {
		d.a.once, d.beside = new(once), false
	}
	at := &tryout{e: e, began: time.Now()}
	if at.m, at.err = d.g.members.get(e); at.err != nil {
		d.done <- at
		return time.Hour
	}
	hedge = unknownPace
	if p := at.m.gate.pace; p != nil {
		hedge = p.patience()
	}
	if at.m.connections().warm.Load() == 0 {
		hedge += d.g.r.HedgeAfter(e)
	}
	a := d.a
	a.spec = &at.m.spec
	go func() {
		at.c, at.err = at.m.dial(WithTrace(ctx, &at.trace), a)
		d.done <- at
	}()
	return hedge
}

// won reports a success.
func (d *groupDial) won(at *tryout) {
	at.trace.Endpoint = at.e.Name
	var took time.Duration
	if !at.trace.Reused {
		took = at.trace.Dial + at.trace.TLS
	}
	d.g.last.Store(at.m)
	d.g.report(at, resolve.Outcome{Kind: resolve.Success, Connect: took})
}

// failed reports a failure and says who is to be tried next, if anybody.
func (d *groupDial) failed(at *tryout) (next *resolve.Endpoint, err error) {
	var e *Error
	if !errors.As(at.err, &e) {
		e = talkFault("dial", at.err)
	}
	named := *e
	named.Err = fmt.Errorf("%s: %w", at.e.Name, e.Err)
	if e.Status == 0 {
		d.g.report(at, resolve.Outcome{Kind: outcomeOf(e.Kind), Text: e.Error()})
		if named.FromUpstream() {
			next, _ = d.other()
		}
		return next, &named
	}
	rx := d.g.r.React(at.e, e.Status, func(name string) string { return e.words[strings.ToLower(name)] })
	rx.Outcome.Connect = at.trace.Dial + at.trace.TLS
	if at.trace.Reused {
		rx.Outcome.Connect = 0
	}
	d.g.report(at, rx.Outcome)
	d.explain(&named, at.e, rx)
	if d.again && named.Kind == Target {
		return nil, &named
	}
	switch rx.Retry {
	case resolve.RetrySame:
		next = at.e
	case resolve.RetryNewSession:
		next, _ = d.pick()
	case resolve.RetryOther:
		if next, _ = d.other(); next == nil {
			next, _ = d.pick()
		}
	default:
		if named.FromUpstream() {
			next, _ = d.other()
		}
	}
	d.again = true
	return next, &named
}

// explain adds what is known about the provider's answer.
func (d *groupDial) explain(e *Error, ep *resolve.Endpoint, rx resolve.Reaction) {
	if rx.Hint != "" {
		e.Hint = rx.Hint
	}
	if rx.Message != "" {
		e.Err = fmt.Errorf("%s: %s", ep.Name, rx.Message)
	}
	if rx.Stop {
		e.Kind, e.Reason = Auth, reasonOf(Auth)
	}
	if rx.Avoid > 0 {
		e.Kind, e.Reason = Target, flow.Forbidden
		d.g.avoidHost(ep, d.key.Domain, rx.Avoid)
	}
}

// pick asks for the best endpoint that carries the target.
func (d *groupDial) pick() (*resolve.Endpoint, error) {
	e, err := d.g.r.Pick(d.key)
	if err != nil {
		return nil, groupFault(d.g.r, err)
	}
	why := d.g.carries(e, d.a.t)
	if why == nil {
		return e, nil
	}
	d.tried = append(d.tried, e)
	if other, err := d.other(); err == nil {
		return other, nil
	}
	return nil, targetFault(flow.Forbidden, why)
}

// other asks for one that has not been tried.
func (d *groupDial) other() (*resolve.Endpoint, error) {
	tried := d.tried
	for {
		e, err := d.g.r.Next(d.key, tried)
		if err != nil || len(tried) > len(d.tried)+groupTries {
			return nil, resolve.ErrNoOther
		}
		if d.g.carries(e, d.a.t) == nil {
			return e, nil
		}
		tried = append(tried[:len(tried):len(tried)], e)
	}
}

func (g *group) report(at *tryout, o resolve.Outcome) {
	g.r.Report(at.e, o)
	if at.m != nil {
		g.members.release(at.m)
	}
}
