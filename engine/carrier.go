package engine

import (
	"context"
	"errors"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// Apps' TCP comes by one of two carriers (engine/netstack): translation in the
// TUN always works and can hold a connection back until its target has answered;
// the redirect costs half the processor time and cannot. So the redirect is on
// while the upstream in use carries early data, whose flows are let in at once
// anyway, and while it is proven to work on this machine.

const (
	carrierPause    = time.Minute // before another try at a redirect that did not work
	carrierPauseMax = time.Hour
)

// wantsRedirect says which carrier is right now.
func (e *Engine) wantsRedirect() bool {
	return !e.held.Load() && e.ups.current().Early() == upstream.EarlyCarries
}

// carry keeps TCP on the right carrier until ctx ends.
func (p *pipeline) carry(ctx context.Context, e *Engine) error {
	pause := carrierPause
	again := time.NewTimer(0)
	defer again.Stop()
	<-again.C
	for ready := true; ; {
		want := e.wantsRedirect()
		if want != p.redirected.Load() && (ready || !want) {
			if err := p.redirect(ctx, e, want); err != nil && ctx.Err() == nil {
				e.log.Info("connections stay in the TUN", "err", err, "next try after", pause)
				ready = false
				again.Reset(pause)
				pause = min(2*pause, carrierPauseMax)
			} else if want {
				pause = carrierPause
			}
			select { // status tells
			case e.in <- changed{}:
			case <-ctx.Done():
			case <-e.ended:
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.ups.changed:
		case <-again.C:
			ready = true
		}
	}
}

// redirect turns the redirect on, if a connection proves that it works, or off.
func (p *pipeline) redirect(ctx context.Context, e *Engine, on bool) error {
	p.netMu.Lock()
	defer p.netMu.Unlock()
	if p.left {
		return nil
	}
	with := p.net
	with.Redirect, with.RedirectExcept = p.stack.RedirectPort(), route.ServerSpeaksFirst()
	if on {
		p.hadRedirect = true
		err := e.opt.Host.Apply(ctx, with)
		if err == nil {
			err = p.stack.ProbeRedirect(ctx)
		}
		if err == nil {
			p.redirected.Store(true)
			return nil
		}
		if back := e.opt.Host.Apply(ctx, p.net); back != nil {
			p.redirected.Store(true) // the rule is there: it is to be taken off
			err = errors.Join(err, back)
		}
		return err
	}
	if err := e.opt.Host.Apply(ctx, p.net); err != nil {
		return err
	}
	p.redirected.Store(false)
	return nil
}

// leave is called before the machine is restored. Redirected flows end while
// the system still takes their last packets to the apps. From here on p changes
// nothing on the machine.
func (p *pipeline) leave(ctx context.Context, e *Engine) {
	p.netMu.Lock()
	defer p.netMu.Unlock()
	p.left = true
	if !p.hadRedirect {
		return
	}
	if p.redirected.Swap(false) {
		if err := e.opt.Host.Apply(ctx, p.net); err != nil {
			e.log.Warn("cannot end the redirect", "err", err)
		}
	}
	p.stack.EndRedirected()
}

// carrier names the carrier of new connections, as status has it.
func (p *pipeline) carrier() string {
	switch {
	case p.redirected.Load():
		return api.CarrierRedirect
	case p.stack.Path() == "kernel":
		return api.CarrierNAT
	}
	return ""
}
