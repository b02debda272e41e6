package upstream

import (
	"context"
	"sync/atomic"
	"time"
)

// Trace receives what the phases of one DialStream took. It is complete when
// DialStream returns; a phase that did not happen stays zero.
type Trace struct {
	Pick     time.Duration // the choice of an endpoint
	Wait     time.Duration // for a warm connection or a session that was being made
	Dial     time.Duration // name resolution and TCP to the upstream (to the target if direct)
	TLS      time.Duration
	Connect  time.Duration // the proxy handshake; zero if the flow did not wait for it
	Reused   bool          // the flow did not wait for a TCP or TLS handshake of its own
	Warm     bool          // it was given a connection of the pool
	Early    bool          // the client's first bytes left before the proxy had answered
	refused  bool          // a new connection to the proxy did not survive early bytes, or they were not understood
	Endpoint string        // who carries it, for people: the upstream's name, or a group's member
}

type traceKey struct{}

// WithTrace makes DialStream under the returned context fill t.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// traceOf is never nil.
func traceOf(ctx context.Context) *Trace {
	if t, ok := ctx.Value(traceKey{}).(*Trace); ok && t != nil {
		return t
	}
	return new(Trace)
}

// Stats is how an upstream has done since New.
type Stats struct {
	RTT         time.Duration // mean of the TCP connect time, lately; 0 if there was none
	Failures    int           // in a row, now; only the upstream's own, see Error.FromUpstream
	Error       string        // of the last failure, with its hint; "" once a flow succeeded
	Flows       uint64        // set up
	Reused      uint64        // of these without a new TCP or TLS handshake in their path
	Warm        int           // connections in the pool now
	WarmHits    uint64        // flows that were given one
	EarlyHits   uint64        // flows whose first bytes left before the proxy had answered
	Sessions    int           // of HTTP/2, now
	UDPBogus    uint64        // datagrams dropped because they did not come from the relay or were malformed
	UDPOverflow uint64        // datagrams that came faster than they were taken, dropped by the kernel
}

type counters struct {
	rtt         atomic.Int64
	failures    atomic.Int64
	worked      atomic.Bool // at the last attempt
	err         atomic.Pointer[string]
	flows       atomic.Uint64
	reused      atomic.Uint64
	warm        atomic.Int64
	warmHits    atomic.Uint64
	early       atomic.Uint64
	udpBogus    atomic.Uint64
	udpOverflow atomic.Uint64
}

func (c *counters) snapshot() Stats {
	s := Stats{
		RTT:         time.Duration(c.rtt.Load()),
		Failures:    int(c.failures.Load()),
		Flows:       c.flows.Load(),
		Reused:      c.reused.Load(),
		Warm:        int(c.warm.Load()),
		WarmHits:    c.warmHits.Load(),
		EarlyHits:   c.early.Load(),
		UDPBogus:    c.udpBogus.Load(),
		UDPOverflow: c.udpOverflow.Load(),
	}
	if p := c.err.Load(); p != nil {
		s.Error = *p
	}
	return s
}

// measured notes how long TCP took to connect.
func (c *counters) measured(d time.Duration) {
	if old := c.rtt.Load(); old != 0 {
		d = time.Duration(old + (int64(d)-old)/8)
	}
	c.rtt.Store(int64(d)) // concurrent ones may be lost
}

// alive notes that the upstream answered as it should.
func (c *counters) alive() {
	if !c.worked.Load() {
		c.worked.Store(true)
	}
	if c.failures.Load() != 0 {
		c.failures.Store(0)
	}
	if c.err.Load() != nil {
		c.err.Store(nil)
	}
}

func (c *counters) failed(err *Error) {
	c.failures.Add(1)
	c.worked.Store(false)
	text := err.Error()
	if err.Hint != "" {
		text += " (" + err.Hint + ")"
	}
	c.err.Store(&text)
}
