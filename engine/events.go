package engine

import (
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// event is what Run's goroutine is told: one of the types below. handle says
// what each leads to, and nothing in it waits.
type event any

type (
	// asked is a call of SetPrefs; reply takes one value and never blocks.
	asked struct {
		prefs api.Prefs
		reply chan<- error
	}
	// died is a part of a running pipeline that has ended of itself.
	died struct {
		pipe *pipeline
		err  error
	}
	// suspect is an upstream that has just failed a flow.
	suspect struct {
		up  *upstream.Upstream
		err error
	}
	// gone is an upstream that cannot be connected to any more; see guard.
	gone struct {
		up  *upstream.Upstream
		err error
	}
	// changed is something that status shows and that Run does not decide.
	changed struct{}
	// done is a job that has ended; result is one of those below.
	done struct {
		job    *job
		result any
	}
)

// What jobs come to.
type (
	startResult struct {
		pipe *pipeline // nil if none is up; with an err it is up, and can only hold traffic
		err  error
	}
	stopResult  struct{ err error }
	lookResult  struct{ err error }
	checkResult struct { // of the look at an upstream that precedes a switch to it
		to     *upstream.Upstream
		choice string
		on     *bool // what else was asked for in the same call
		reply  chan<- error
		err    error
	}
)

// handle carries out one event.
func (e *Engine) handle(ev event) {
	switch ev := ev.(type) {
	case asked:
		e.setPrefs(ev)
	case died:
		if ev.pipe == e.pipe { // else it is gone already, or not here yet: see started
			e.broken = true
			e.learn(inFailed, ev.err)
		}
	case suspect:
		e.suspected(ev)
	case gone:
		e.lost(ev)
	case changed: // to be published
	case done:
		e.finished(ev)
	}
}

// finished takes in what a job has come to, unless it was abandoned since.
func (e *Engine) finished(d done) {
	switch r := d.result.(type) {
	case startResult:
		if d.job == e.job {
			e.job = nil
			e.started(d.job, r)
		}
	case stopResult:
		if d.job == e.job {
			e.job = nil
			e.stopped(r)
		}
	case lookResult:
		if d.job == e.probe {
			e.probe = nil
			if r.err != nil {
				e.learn(inLost, r.err)
			} else {
				e.learn(inRecovered, nil)
			}
		}
	case checkResult:
		e.switched(d.job, r)
	}
}

// started takes over what a start has made.
func (e *Engine) started(j *job, r startResult) {
	e.pipe, e.broken = r.pipe, false // a failed one holds traffic, although it cannot carry any
	if j.stale && e.m.state == api.Starting {
		e.start() // this one says nothing about the upstream in use
		return
	}
	if r.pipe != nil {
		if death := r.pipe.death.Load(); death != nil {
			r.err, e.broken = *death, true
		}
	}
	if r.err != nil {
		e.learn(inFailed, r.err)
	} else {
		e.learn(inStarted, nil)
	}
}

func (e *Engine) stopped(r stopResult) {
	e.left = r.err
	if r.err != nil {
		e.log.Error("restore the machine", "err", r.err)
		e.cause = notRestored(r.err)
	}
	e.apply(inStopped)
}

func notRestored(err error) *api.Error {
	return &api.Error{Code: api.ErrNotRestored, Message: "the machine is not restored completely: " + err.Error(),
		Hint: "remove what stands in the way and run `sudo atlantic down` again, or end the service and run `sudo atlantic rescue`"}
}

// learn takes in that the way out is open, or why it is not.
func (e *Engine) learn(in input, err error) {
	e.hurdle = nil
	switch {
	case e.m.locked: // what locks it stays the cause
		e.hurdle = err
	case err != nil:
		e.cause = Explain(err)
	default:
		e.cause, e.tries = nil, 0
	}
	e.apply(in)
}
