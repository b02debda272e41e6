package engine

import (
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
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
	case m.carrier: // to be published
		return
	}
	switch {
	case m.from == nil: // a pipeline died
		if m.pipe != e.pipe {
			return // it is gone already, or not here yet: see started
		}
		e.broken = true
	case m.from == e.probe:
		e.probe = nil
	case m.from == e.job:
		e.job = nil
		if m.in != inStopped && !e.started(&m) {
			return
		}
	default: // work that was abandoned since
		return
	}
	switch {
	case m.in == inStopped && m.err != nil:
		e.log.Error("restore the machine", "err", m.err)
		e.cause = notRestored(m.err)
	case m.in == inStopped:
	case e.m.locked: // what locks it stays the cause
		if m.err != nil {
			e.log.Warn("while traffic is held", "err", m.err)
		}
	case m.err != nil:
		e.cause = Explain(m.err)
	default:
		e.cause, e.tries = nil, 0
	}
	e.apply(m.in)
}

func notRestored(err error) *api.Error {
	return &api.Error{Code: api.ErrNotRestored, Message: "the machine is not restored completely: " + err.Error(),
		Hint: "remove what stands in the way, end the service, and run `sudo atlantic rescue`"}
}

// started takes over what a start has made. It reports false if the start says
// nothing about the upstream in use, and another one has begun.
func (e *Engine) started(m *message) bool {
	e.pipe, e.broken = m.pipe, false // a failed one holds traffic, although it cannot carry any
	if m.from.stale && e.m.state == api.Starting {
		e.start()
		return false
	}
	if m.pipe != nil {
		if death := m.pipe.death.Load(); death != nil {
			m.in, m.err, e.broken = inFailed, *death, true
		}
	}
	return true
}

// apply moves the machine and carries out the effects.
func (e *Engine) apply(in input) {
	before := e.m.state
	m, do := next(e.m, in)
	e.m = m
	if m.state != before {
		e.log.Info("state", "from", before, "to", m.state, "cause", causeText(e.cause))
		if m.state == api.Off {
			e.ups.rest()
		}
	}
	if do.cancel && e.probe != nil {
		e.probe.cancel()
		e.probe = nil
	}
	if do.hold {
		e.held.Store(true)
		e.ups.each((*upstream.Upstream).Rest) // no try with what may be a wrong password but our own
		e.ups.poke()
		e.reconnect()
	}
	if do.let {
		e.held.Store(false)
		e.ups.poke()
	}
	switch {
	case do.forget:
		e.intent.On = false
		e.takeBack()
	case in == inStarted, in == inDown:
		e.former = nil
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
		e.ups.wake()
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
