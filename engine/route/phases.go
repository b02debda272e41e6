package route

import (
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// phases counts how long each step of a flow took. A step that did not happen
// is not counted; the rules' share is, always.
type phases struct {
	added, rules, pick, wait, dial, tls, connect, firstByte flow.Histogram
}

// note counts the steps of one dial.
func (p *phases) note(rules time.Duration, t *upstream.Trace) {
	p.rules.Add(rules)
	for _, step := range []struct {
		h *flow.Histogram
		d time.Duration
	}{{&p.pick, t.Pick}, {&p.wait, t.Wait}, {&p.dial, t.Dial}, {&p.tls, t.TLS}, {&p.connect, t.Connect}} {
		if step.d > 0 {
			step.h.Add(step.d)
		}
	}
}

// Percentiles are p50, p95 and p99 in milliseconds, zero if nothing was
// measured.
type Percentiles [3]float64

// Latency is how long flows took since New.
type Latency struct {
	Added     Percentiles // from a flow's arrival to the start of its dial
	FirstByte Percentiles // from its arrival to the first byte back
	// The steps between, each of the flows in whose path it was.
	Rules, Pick, Wait, Dial, TLS, Connect Percentiles
}

// Latency reads the histograms; it takes some microseconds each.
func (h *Handler) Latency() Latency {
	p := &h.phases
	return Latency{
		Added: p.added.Percentiles(), FirstByte: p.firstByte.Percentiles(),
		Rules: p.rules.Percentiles(), Pick: p.pick.Percentiles(), Wait: p.wait.Percentiles(),
		Dial: p.dial.Percentiles(), TLS: p.tls.Percentiles(), Connect: p.connect.Percentiles(),
	}
}
