package engine

import (
	"context"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Work that takes time, beside Run: starts, stops, and looks at the upstream.

// cure looks whether what holds traffic back has gone; from Off, whether a try
// that failed works now.
func (e *Engine) cure() {
	switch {
	case e.m.state == api.Off:
		e.apply(inAgain)
	case e.m.state != api.Blocked || e.job != nil || e.probe != nil:
	case e.pipe == nil || e.broken:
		e.start()
	case !e.m.locked:
		e.look()
	}
}

// suspected looks at the upstream in use after it has failed a flow, no more
// often than once a second. Wrong credentials need no second opinion. Without
// the kill switch nothing is held: each flow is tried and refused by itself.
func (e *Engine) suspected(s suspect) {
	if e.opt.Config.Protect.KillSwitch == "off" {
		return
	}
	if e.m.state != api.On || s.up != e.ups.current() || e.probe != nil {
		return
	}
	if time.Since(e.looked) < time.Second {
		return
	}
	if Explain(s.err).Code == api.ErrAuth {
		e.learn(inLost, s.err)
		return
	}
	e.look()
}

// look asks the upstream in use whether it is alive, beside Run.
func (e *Engine) look() {
	u := e.ups.current()
	e.looked = time.Now()
	e.probe = e.spawn(func(ctx context.Context) any { return lookResult{e.ups.check(ctx, u)} })
}

// job is work beside Run. Its owner waits for done.
type job struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when result is set
	result any
	stale  bool // of a start: another upstream was chosen meanwhile; owned by Run
}

// spawn runs f beside Run and hands what it comes to to Run.
func (e *Engine) spawn(f func(ctx context.Context) any) *job {
	ctx, cancel := context.WithCancel(context.Background())
	j := &job{cancel: cancel, done: make(chan struct{})}
	e.work.Go(func() {
		defer cancel()
		j.result = f(ctx)
		close(j.done)
		e.tell(done{j, j.result})
	})
	return j
}

// tell hands ev to Run; it gives up once Run is over.
func (e *Engine) tell(ev event) {
	select {
	case e.in <- ev:
	case <-e.ended:
	}
}

// start brings a pipeline up. What is left of an older one goes first.
func (e *Engine) start() {
	old, u := e.pipe, e.ups.current()
	e.pipe = nil
	proven, check := e.m.proven, !e.m.locked
	e.job = e.spawn(func(ctx context.Context) any {
		if old != nil {
			old.close()
		}
		// Nobody's first try may cost them the network: the upstream is asked
		// before anything on the machine changes. Once it has worked, traffic
		// is caught first and held until the upstream answers.
		if check && !proven {
			if err := e.ups.check(ctx, u); err != nil {
				return startResult{err: err}
			}
		}
		p, err := e.openPipeline(ctx)
		if err == nil && check && proven {
			err = e.ups.check(ctx, u)
		}
		return startResult{p, err}
	})
}

// stop takes everything down beside Run, a start in progress included.
func (e *Engine) stop() {
	starting, pipe := e.job, e.pipe
	e.pipe = nil
	e.job = e.spawn(func(context.Context) any { return stopResult{e.restore(starting, pipe)} })
}

// restore ends a start in progress, puts the machine back as it was, and then
// takes the pipeline down: apps lose no packet to a TUN that nobody reads.
func (e *Engine) restore(starting *job, pipe *pipeline) error {
	if starting != nil {
		starting.cancel()
		<-starting.done
		if r, ok := starting.result.(startResult); ok && r.pipe != nil {
			pipe = r.pipe
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if pipe != nil {
		pipe.leave(ctx, e)
	}
	err := e.opt.Host.Apply(ctx, platform.NetConfig{})
	if pipe != nil {
		pipe.close()
	}
	return err
}
