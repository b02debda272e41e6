package route

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// Where a flow goes. There is one decision, for flows and for who asks about them:
//
//	decide  ─► known ─► Blocked? ─► which program? ─┬─► judge ( ─► guard: may this app?)
//	Explain ─► known ───────────────────────────────┘

// decision is where a flow goes, or why it does not.
type decision struct {
	u       *upstream.Upstream // nil: not carried
	auto    bool               // u is what Current returned
	target  flow.Target
	verdict flow.Verdict
	process string
	took    time.Duration
	reason  flow.Reason // if u is nil
	blocked bool        // if u is nil: by a rule, the UDP policy or Blocked, not for want of a way
	passing bool        // if u is nil: what stands in the way may be gone for the next datagram
}

// decide finds the way for one target of f.
func (h *Handler) decide(f flow.Flow, t flow.Target) decision {
	begin := time.Now()
	d, q, ok := h.known(f.Network, t)
	if !ok {
		return d
	}
	if h.opts.Blocked != nil && h.opts.Blocked() {
		d.reason, d.blocked, d.passing = flow.Forbidden, true, true
		return d
	}
	if h.opts.Process != nil && h.opts.Rules.NeedsProcess() {
		d.process = h.opts.Process(f.Network.String(), f.Src, f.Dst)
		q.Process = d.process
	}
	h.judge(&d, q)
	h.guard(f, &d)
	d.took = time.Since(begin)
	return d
}

// known is what is known of a target; not ok if it leads nowhere, as d then says.
func (h *Handler) known(n flow.Network, t flow.Target) (d decision, q rules.Query, ok bool) {
	d.target = t
	q = rules.Query{Network: n, Name: t.Name, Addr: t.Addr, Port: t.Port}
	if !t.Addr.IsValid() || h.opts.Resolve == nil {
		return d, q, true
	}
	name, fake := h.opts.Resolve(t.Addr)
	if q.Name == "" {
		q.Name = name
	}
	if !fake {
		return d, q, true
	}
	// Only what the app's own resolver gave out leads anywhere.
	if q.Name == "" {
		d.reason, d.passing = flow.Unreachable, true
		d.verdict.Rule = fmt.Sprintf("the fake address %v is not known any more: look the name up again", t.Addr)
		return d, q, false
	}
	q.Addr = netip.Addr{}
	d.target = flow.Target{Name: q.Name, Port: t.Port}
	return d, q, true
}

// judge finds the verdict, and the upstream that it means. The first rule that
// holds wins; the local network and the UDP policy are for what no rule sends
// anywhere.
func (h *Handler) judge(d *decision, q rules.Query) {
	d.verdict = h.opts.Rules.Match(q)
	if d.verdict.Rule == "default" && h.opts.Local != nil && h.opts.Local(q.Name, q.Addr) {
		d.verdict = flow.Verdict{Kind: flow.Direct, Rule: "local network"}
	}
	if d.verdict.Kind == flow.Auto && q.Network == flow.UDP {
		switch h.opts.UDP {
		case UDPDirect:
			d.verdict = flow.Verdict{Kind: flow.Direct, Rule: "protect.udp"}
		case UDPBlock:
			d.verdict = flow.Verdict{Kind: flow.Block, Rule: "protect.udp"}
		}
	}
	switch d.verdict.Kind {
	case flow.Direct:
		d.u = h.opts.Direct
	case flow.Block:
		d.reason, d.blocked = flow.Forbidden, true
	case flow.Via:
		if h.opts.Named != nil {
			d.u = h.opts.Named(d.verdict.Upstream)
		}
		if d.u == nil {
			d.reason = flow.Forbidden
			d.verdict.Rule += fmt.Sprintf(": there is no upstream %q", d.verdict.Upstream)
		}
	default:
		d.auto, d.u = true, h.opts.Current()
	}
}

// Way is where a flow would go.
type Way struct {
	Target   flow.Target        // as it would be dialled: a name in place of a fake address
	Verdict  flow.Verdict       // and which rule says so
	Upstream *upstream.Upstream // nil: it would be refused
	NoUDP    bool               // the flow is UDP, and Upstream carries none: it would be refused
}

// Explain says where a flow of the program at that path would go, by the very
// decision that carries flows; "" is one that no rule names. It asks nobody, and
// looks past Blocked.
func (h *Handler) Explain(n flow.Network, t flow.Target, process string) Way {
	d, q, ok := h.known(n, t)
	if ok {
		q.Process = process
		h.judge(&d, q)
	}
	return Way{d.target, d.verdict, d.u, n == flow.UDP && d.u != nil && d.u.Packets() == nil}
}
