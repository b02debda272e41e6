package engine

import (
	"context"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// What the user asks for: on or off, and by which upstream.

// SetPrefs changes what the user wants. It returns once the change has been
// accepted: an unknown upstream, and one that does not answer while traffic
// depends on it, are refused and nothing changes; coming up or going down takes
// place afterwards and is told by Watch. A choice that comes with a first try
// lasts only if that succeeds. What could not be kept for the next start is
// told by the status, and is in force all the same.
func (e *Engine) SetPrefs(ctx context.Context, p api.Prefs) (api.Status, error) {
	reply := make(chan error, 1)
	select {
	case e.in <- asked{p, reply}:
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

func (e *Engine) setPrefs(a asked) {
	p := a.prefs
	wantsOn := p.On != nil && *p.On
	switch {
	case e.m.ending:
		a.reply <- errStopping
		return
	case e.unusable != nil && (wantsOn || p.Upstream != nil):
		a.reply <- e.unusable
		return
	case e.mustChoose && wantsOn && p.Upstream == nil:
		a.reply <- e.cause
		return
	}
	if e.sw != nil && (p.Upstream != nil || p.On != nil && !*p.On) {
		e.sw.cancel() // who asked for it is told by switched
		e.sw = nil
	}
	if p.Upstream != nil {
		u, err := e.ups.find(*p.Upstream)
		if err != nil {
			a.reply <- err
			return
		}
		staysUp := (e.m.state == api.On || e.m.state == api.Blocked) && (p.On == nil || *p.On)
		if staysUp && (u != e.ups.current() || e.mustChoose) {
			e.sw = e.spawn(func(ctx context.Context) any {
				return checkResult{u, *p.Upstream, p.On, a.reply, e.ups.check(ctx, u)}
			})
			return
		}
		former := e.former
		if former == nil {
			was := e.intent.Upstream
			former = &was
		}
		e.choose(u, *p.Upstream)
		if wantsOn && !staysUp {
			e.former = former
		}
	}
	e.setOn(p.On)
	e.accepted(a.reply)
}

// accepted has a call answered whose change is in force, once it is also kept, or
// cannot be: status says which. The caller reads the new status then.
func (e *Engine) accepted(reply chan<- error) {
	asked, _ := e.keeper.progress()
	e.waiting = append(e.waiting, waiting{asked, reply})
}

// waiting is a call that is answered once the keeper has tried so much.
type waiting struct {
	upTo  uint64
	reply chan<- error
}

// answer answers the calls that wait for no more than what was tried.
func (e *Engine) answer(tried uint64) {
	for len(e.waiting) > 0 && e.waiting[0].upTo <= tried { // they are in order
		e.waiting[0].reply <- nil
		e.waiting = e.waiting[1:]
	}
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
	e.intent.Upstream, e.mustChoose = choice, false
	e.keep()
}

// keep has the intent written as it is now.
func (e *Engine) keep() {
	e.intent.On, e.intent.Proven = e.m.want, e.m.proven
	switch {
	case !e.m.proven:
		e.intent.By = exit{}
	case e.m.state == api.On:
		e.intent.By = exitOf(e.ups.current())
		if e.opt.ConfigErr == nil {
			e.keeper.keepGood(e.opt.Config.Text)
		}
	}
	e.keeper.keep(e.intent)
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
func (e *Engine) switched(j *job, r checkResult) {
	switch {
	case e.m.ending:
		r.err = errStopping
	case j != e.sw:
		r.err = errReplaced
	default:
		e.sw = nil
	}
	if r.err != nil {
		e.ups.discard(r.to)
		r.reply <- Explain(r.err)
		return
	}
	decided := e.mustChoose
	e.choose(r.to, r.choice)
	if decided {
		e.apply(inUp)
	}
	if e.m.state == api.Blocked && e.pipe != nil && !e.broken && e.job == nil {
		e.learn(inRecovered, nil)
	}
	e.setOn(r.on)
	e.accepted(r.reply)
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
