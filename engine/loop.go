package engine

import (
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// What Run's goroutine does with a message. Nothing here waits.

// handle carries out one message.
func (e *Engine) handle(m message) {
	switch {
	case m.prefs != nil:
		e.setPrefs(m)
		return
	case m.sw != nil:
		e.switched(m)
		return
	case m.suspect != nil:
		e.suspected(m)
		return
	}
	if m.from != nil {
		switch m.from {
		case e.job:
			e.job = nil
		case e.probe:
			e.probe = nil
		default: // work that was abandoned since
			return
		}
	}
	if m.in == inStarted {
		e.pipe, e.broken = m.pipe, false
	}
	if m.in == inFailed && m.from == nil && (m.pipe == nil || m.pipe != e.pipe) {
		return // the death of a pipeline that is gone already
	}
	if m.in == inFailed {
		if m.pipe != nil {
			e.pipe = m.pipe // it holds traffic, although it cannot carry any
		}
		e.broken = m.from == nil
	}
	switch m.in {
	case inStarted, inRecovered:
		if !e.m.locked {
			e.cause, e.tries = nil, 0
		}
	case inFailed, inLost:
		e.cause = Explain(m.err)
	}
	e.apply(m.in)
}

// apply moves the machine and carries out the effects.
func (e *Engine) apply(in input) {
	before := e.m.state
	m, do := next(e.m, in)
	e.m = m
	if m.state != before {
		e.log.Info("state", "from", before, "to", m.state, "cause", causeText(e.cause))
	}
	if do.cancel && e.probe != nil {
		e.probe.cancel()
		e.probe = nil
	}
	if do.hold {
		e.held.Store(true)
	}
	if do.let {
		e.held.Store(false)
	}
	if do.forget {
		e.intent.On = false
	}
	if do.save {
		e.intent.On = m.want && !do.forget
		e.intent.Proven = m.proven
		if err := saveIntent(e.opt.StateDir, e.intent); err != nil {
			e.log.Error("keep the intent", "err", err)
		}
	}
	switch {
	case do.stop:
		e.timer.Stop()
		if in == inDown {
			e.cause = nil
		}
		e.stop()
	case do.start:
		if in == inUp {
			e.cause = nil
		}
		e.tries = 0
		e.start()
	case do.retry:
		e.timer.Reset(e.pause(in))
	}
}

// pause is how long to wait before the next look for a cure: at once when the
// user asks, about a second otherwise (FT-01: no more than one try a second),
// longer where wrong credentials could lock an account (FT-20).
func (e *Engine) pause(in input) time.Duration {
	if in == inUp {
		return 0
	}
	e.tries++
	d := time.Second
	if e.cause != nil && e.cause.Code == api.ErrAuth {
		d = 5 * time.Second
	}
	if e.tries == 1 && d == time.Second {
		d /= 2
	}
	return jitter(d)
}
