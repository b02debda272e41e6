package engine

import (
	"context"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// guard watches the upstream in use: one that dies while nobody uses it would
// keep the light green.
type guard struct {
	up     *upstream.Upstream // nil if none is watched
	cancel context.CancelFunc
}

// keepGuard has the right upstream watched, if any: while On, and where its loss
// holds traffic. Without the kill switch each flow is tried for itself.
func (e *Engine) keepGuard() {
	var up *upstream.Upstream
	if e.m.state == api.On && e.opt.Config.Protect.KillSwitch != "off" {
		up = e.ups.current()
	}
	if up == e.guard.up {
		return
	}
	e.endGuard()
	if up == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.guard = guard{up, cancel}
	e.work.Go(func() {
		defer cancel()
		if err := up.Watch(ctx); err != nil {
			e.tell(gone{up, err})
		}
	})
}

func (e *Engine) endGuard() {
	if e.guard.up != nil {
		e.guard.cancel()
	}
	e.guard = guard{}
}

// lost takes the word of a watch: it has tried more than once, and no flow has
// got through meanwhile.
func (e *Engine) lost(g gone) {
	if g.up != e.guard.up {
		return
	}
	e.endGuard()
	if e.m.state == api.On && g.up == e.ups.current() && e.probe == nil {
		e.learn(inLost, g.err)
	}
}
