package engine

import (
	"context"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// What the user asks for: on or off, and by which upstream.

// upstreamSwitch is the answer of the check that precedes a switch.
type upstreamSwitch struct {
	to     *upstream.Upstream
	choice string
	on     *bool // what else was asked for in the same call
}

// SetPrefs changes what the user wants. It returns once the change has been
// accepted: an unknown upstream, and one that does not answer while traffic
// depends on it, are refused and nothing changes; coming up or going down takes
// place afterwards and is told by Watch. A choice that comes with a first try
// lasts only if that succeeds.
func (e *Engine) SetPrefs(ctx context.Context, p api.Prefs) (api.Status, error) {
	reply := make(chan error, 1)
	select {
	case e.in <- message{prefs: &p, reply: reply}:
	case <-ctx.Done():
		return e.Status(), ctx.Err()
	case <-e.ended:
		return e.Status(), errStopping
	}
	select {
	case err := <-reply:
		return e.Status(), err
	case <-ctx.Done():
		return e.Status(), ctx.Err()
	case <-e.ended:
		return e.Status(), errStopping
	}
}

var (
	errStopping = &api.Error{Code: api.ErrInternal, Message: "the service is stopping",
		Hint: "start it again: sudo atlantic service start"}
	errReplaced = &api.Error{Code: api.ErrBadRequest, Message: "another command came before this upstream was checked",
		Hint: "`atlantic status` shows what is in use now"}
)

func (e *Engine) setPrefs(m message) {
	p := m.prefs
	if e.sw != nil && (p.Upstream != nil || p.On != nil && !*p.On) {
		e.sw.cancel() // who asked for it is told by switched
		e.sw = nil
	}
	if p.Upstream != nil {
		u, err := e.ups.find(*p.Upstream)
		if err != nil {
			m.reply <- err
			return
		}
		staysUp := (e.m.state == api.On || e.m.state == api.Blocked) && (p.On == nil || *p.On)
		if staysUp && u != e.ups.current() {
			sw := &upstreamSwitch{to: u, choice: *p.Upstream, on: p.On}
			e.sw = e.spawn(func(ctx context.Context) message {
				return message{sw: sw, err: e.ups.check(ctx, u), reply: m.reply}
			})
			return
		}
		former := e.former
		if former == nil {
			was := e.intent.Upstream
			former = &was
		}
		e.choose(u, *p.Upstream)
		if p.On != nil && *p.On && !staysUp {
			e.former = former
		}
	}
	e.setOn(p.On)
	e.publish() // the caller reads the new status as soon as it is answered
	m.reply <- nil
}

// choose puts u in use and keeps the choice. Flows that are open stay with the
// former one, but nothing new goes there; what was found out about it, or is
// still being found out, does not count any more.
func (e *Engine) choose(u *upstream.Upstream, choice string) {
	former := e.ups.current()
	e.former = nil
	e.ups.use(u, choice)
	if u != former {
		e.reconnect()
		if e.probe != nil {
			e.probe.cancel()
			e.probe = nil
		}
		if e.m.state == api.Starting && e.job != nil {
			e.job.stale = true
			e.job.cancel()
		}
	}
	e.intent.Upstream = choice
	if err := saveIntent(e.opt.StateDir, e.intent); err != nil {
		e.log.Error("keep the choice of upstream", "err", err)
	}
}

// takeBack undoes the choice that came with a first try, if that has failed by
// the upstream: wrong input changes nothing. The caller keeps the intent.
func (e *Engine) takeBack() {
	if e.former == nil || e.cause != nil && !ofUpstream(e.cause.Code) {
		e.former = nil
		return
	}
	u, err := e.ups.find(*e.former)
	if err != nil {
		e.log.Error("go back to the former upstream", "err", err)
		return
	}
	if u != e.ups.current() {
		e.ups.use(u, *e.former)
		e.reconnect()
	}
	e.intent.Upstream, e.former = *e.former, nil
}

// ofUpstream tells whether an upstream is at fault, and not this machine.
func ofUpstream(c api.ErrorCode) bool {
	switch c {
	case api.ErrRefused, api.ErrUnreachable, api.ErrTimeout, api.ErrAuth, api.ErrTLS, api.ErrProtocol, api.ErrTargetFailed:
		return true
	}
	return false
}

// reconnect keeps connections that are open from serving what is asked from now
// on: other than flows of apps, they would never end.
func (e *Engine) reconnect() {
	e.names.switched()
	if e.pipe != nil && e.pipe.local != nil {
		e.pipe.local.Forget()
	}
}

// switched ends what setPrefs began: the new upstream has been checked.
func (e *Engine) switched(m message) {
	if m.from != e.sw {
		m.err = errReplaced
	} else {
		e.sw = nil
	}
	if m.err != nil {
		e.ups.discard(m.sw.to)
		m.reply <- Explain(m.err)
		return
	}
	e.choose(m.sw.to, m.sw.choice)
	if e.m.state == api.Blocked && e.pipe != nil && !e.broken && e.job == nil {
		e.cause, e.tries = nil, 0
		e.apply(inRecovered)
	}
	e.setOn(m.sw.on)
	e.publish()
	m.reply <- nil
}

func (e *Engine) setOn(on *bool) {
	switch {
	case on == nil:
	case *on:
		e.apply(inUp)
	default:
		e.apply(inDown)
	}
}
