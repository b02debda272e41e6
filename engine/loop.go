package engine

import (
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// apply moves the machine and carries out the effects, in their order.
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
	if in == inUp && do&start != 0 || (in == inDown || in == inEnd) && do&stop != 0 {
		e.cause, e.hurdle = nil, nil
	}
	if in == inStarted || in == inDown {
		e.former = nil
	}
	for one := cancel; one < noMore; one <<= 1 {
		if do&one != 0 {
			e.carryOut(one, in)
		}
	}
}

func (e *Engine) carryOut(one effects, in input) {
	switch one {
	case cancel:
		e.cancelLooks()
	case hold:
		e.held.Store(true)
		e.ups.each((*upstream.Upstream).Rest) // no try with what may be a wrong password but our own
		e.ups.poke()
		e.reconnect()
	case let:
		e.held.Store(false)
		e.ups.poke()
	case forget:
		e.takeBack()
	case save:
		e.keep()
	case stop:
		e.timer.Stop()
		e.stop()
	case start:
		e.timer.Stop()
		if in != inAgain {
			e.tries = 0
		}
		e.ups.wake()
		e.start()
	case retry:
		e.timer.Reset(e.pause(in))
	case end:
		e.timer.Stop()
		close(e.ended)
	}
}

// cancelLooks abandons what is being found out about upstreams.
func (e *Engine) cancelLooks() {
	for _, j := range []*job{e.probe, e.sw} {
		if j != nil {
			j.cancel()
		}
	}
	e.probe, e.sw = nil, nil // who asked for the switch is told by switched
}

// lastStart is the longest pause between two tries to be on as before.
const lastStart = 30 * time.Second

// pause is how long to wait before the next look for a cure: at once when the
// user asks, about a second otherwise (FT-01: no more than one try a second),
// longer where wrong credentials could lock an account (FT-20).
func (e *Engine) pause(in input) time.Duration {
	if in == inUp {
		return 0
	}
	e.tries++
	if in == inStopped { // from Off, where nothing is held: the whole start is tried again
		return jitter(min(time.Second<<min(e.tries-1, 5), lastStart))
	}
	d := time.Second
	if e.cause != nil && e.cause.Code == api.ErrAuth {
		d = 5 * time.Second
	}
	if e.tries == 1 && d == time.Second {
		d /= 2
	}
	return jitter(d)
}
