package route

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// Info is one live flow.
type Info struct {
	Flow      flow.Flow // Target as it was dialled: a name instead of a fake address
	Process   string    // "" unless some rule asks for it
	Via       string    // the upstream's name
	Rule      string    // which rule decided
	Up, Down  uint64    // payload bytes so far
	Rules     time.Duration
	Trace     upstream.Trace // zero while dialling
	FirstByte time.Duration  // from the flow's start; 0 if nothing came back yet
}

// live is a flow's entry in the table.
type live struct {
	flow      flow.Flow
	u         *upstream.Upstream
	via       string
	rule      string
	process   string
	rules     time.Duration
	guarded   bool     // see mayReach
	sum       *traffic // the handler's totals it counts towards
	cancel    context.CancelFunc
	bytes     traffic
	trace     atomic.Pointer[upstream.Trace]
	relay     atomic.Pointer[relay]
	firstByte atomic.Int64
	moved     uint64 // bytes at the last sweep; owned by Run
	// quiet: the app was accepted first and said nothing. Set before the relay.
	quiet bool
}

// track puts a flow into the table; the caller deletes it.
func (h *Handler) track(f flow.Flow, d decision, cancel context.CancelFunc) *live {
	f.Target = d.target
	l := &live{flow: f, u: d.u, guarded: d.guarded(), rule: d.verdict.Rule, process: d.process, rules: d.took, cancel: cancel}
	if d.u != nil {
		l.via = d.u.Spec().Name
		l.sum = h.sumOf(d.u)
	}
	h.live.Store(f.ID, l)
	return l
}

func (h *Handler) sumOf(u *upstream.Upstream) *traffic {
	if u.Spec().Scheme == "direct" {
		return &h.directBytes
	}
	return &h.viaBytes
}

// countUp counts n bytes from the app.
func (l *live) countUp(n int) {
	l.bytes.up.Add(uint64(n))
	l.sum.up.Add(uint64(n))
}

// countDown counts n bytes to the app.
func (l *live) countDown(n int) {
	l.bytes.down.Add(uint64(n))
	l.sum.down.Add(uint64(n))
}

// cameBack notes the first byte from the target.
func (h *Handler) cameBack(l *live) {
	took := max(time.Since(l.flow.Start), 1)
	if l.firstByte.CompareAndSwap(0, int64(took)) {
		h.phases.firstByte.Add(took)
		if r := l.relay.Load(); l.quiet && r != nil && !r.up.spoke.Load() {
			h.talkers.add(l.flow.Target)
		}
	}
}

// Flows lists the live flows, oldest first.
func (h *Handler) Flows() []Info {
	var out []Info
	h.live.Range(func(_, v any) bool {
		l := v.(*live)
		i := Info{
			Flow: l.flow, Process: l.process, Via: l.via, Rule: l.rule, Rules: l.rules,
			Up: l.bytes.up.Load(), Down: l.bytes.down.Load(),
			FirstByte: time.Duration(l.firstByte.Load()),
		}
		if t := l.trace.Load(); t != nil {
			i.Trace = *t
		}
		out = append(out, i)
		return true
	})
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.Flow.ID, b.Flow.ID) })
	return out
}

// Kill resets the flow and reports whether there was one.
func (h *Handler) Kill(id uint64) bool {
	v, ok := h.live.Load(id)
	if ok {
		v.(*live).cancel()
	}
	return ok
}
