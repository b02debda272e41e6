package route

import (
	"context"
	"errors"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// HandleStream implements flow.Handler.
func (h *Handler) HandleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	if h.toDNS(f.Inbound, f.Dst.Port()) {
		h.handlePort53(ctx, f, p)
		return
	}
	h.handleStream(ctx, f, p)
}

// handleStream carries a stream that is a flow.
func (h *Handler) handleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	h.total.Add(1)
	h.open.Add(1)
	defer h.open.Add(-1)
	d := h.decide(f, f.Target)
	if d.u == nil {
		h.count(d)
		p.Reject(d.reason)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := h.track(f, d, cancel)
	defer h.live.Delete(f.ID)
	// The set-up runs deep; a goroutine of its own takes that stack away with
	// it, and leaves a small one to wait through the flow's life.
	ends := make(chan legs, 1)
	go func() { ends <- h.setUp(ctx, l, p) }()
	if e := <-ends; e.app != nil {
		h.relay(ctx, l, e.app, e.up)
	}
}

// legs are the two connections of a relay, nil if there is nothing to relay.
type legs struct{ app, up flow.StreamConn }

// setUp connects app and target; on failure it has refused or reset the app.
func (h *Handler) setUp(ctx context.Context, l *live, p flow.Pending) legs {
	var first []byte
	if s, ok := p.(flow.Spoken); ok {
		first = s.Spoken()
	} else if l.u.WantsEarly(l.flow.Target) && !h.talkers.has(l.flow.Target) {
		return h.acceptFirst(ctx, l, p)
	}
	up, err := h.dial(ctx, l, first)
	if err != nil {
		p.Reject(reasonOf(err))
		return legs{}
	}
	app, err := p.Accept()
	if err != nil {
		abort(up)
		h.opts.Log.Debug("app went away before its flow was set up", "flow", l.flow.ID, "error", err)
		return legs{}
	}
	l.countUp(len(first))
	return legs{app, up}
}

// acceptFirst lets the app speak before the upstream is asked.
func (h *Handler) acceptFirst(ctx context.Context, l *live, p flow.Pending) legs {
	app, err := p.Accept()
	if err != nil {
		h.opts.Log.Debug("app went away before its flow was set up", "flow", l.flow.ID, "error", err)
		return legs{}
	}
	first, err := h.firstBytes(app)
	if err != nil {
		abort(app)
		return legs{}
	}
	l.quiet = len(first) == 0
	up, err := h.dial(ctx, l, first)
	if err != nil {
		abort(app)
		return legs{}
	}
	l.countUp(len(first))
	return legs{app, up}
}

// dial connects to the flow's target and sends the app's first bytes.
func (h *Handler) dial(ctx context.Context, l *live, first []byte) (flow.StreamConn, error) {
	h.phases.added.Add(time.Since(l.flow.Start))
	if l.process != "" {
		ctx = upstream.WithApp(ctx, l.process)
	}
	if l.guarded && l.flow.Target.Name != "" {
		ctx = upstream.WithGuard(ctx, h.guardOf(l.flow))
	}
	d := h.dialTarget(ctx, l, first)
	c, tr, err := d.c, d.tr, d.err
	l.trace.Store(tr)
	h.outcome(ctx, l.u, l.flow.Target.Host(), err)
	h.phases.note(l.rules, tr)
	if err != nil {
		h.refused.Add(1)
		h.opts.Log.Debug("flow failed", "flow", l.flow.ID, "via", l.via, "error", err)
		return nil, err
	}
	if l.sum == &h.viaBytes {
		h.carried.Add(1)
		if tr.Reused {
			h.reused.Add(1)
		}
	}
	if tr.Warm {
		h.warm.Add(1)
	}
	if tr.Early {
		h.early.Add(1)
	}
	return c, nil
}

// outcome tells those who want to know how a dial ended.
func (h *Handler) outcome(ctx context.Context, u *upstream.Upstream, host string, err error) {
	if err != nil && ctx.Err() != nil {
		return
	}
	if h.opts.Observe != nil {
		h.opts.Observe(u, err)
	}
	if err == nil {
		h.errs.forget(host)
		return
	}
	text := err.Error()
	var e *upstream.Error
	if errors.As(err, &e) && e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	h.errs.put(host, text)
}
