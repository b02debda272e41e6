package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

const (
	groupTries = 4   // endpoints for one flow
	maxAvoided = 512 // hosts that a provider refuses
)

// group carries each flow by the member that the resolver picks for it.
//
//	Pick ─► dial ─┬─ tunnel ────────────────────────────────► Report, the flow
//	  ▲           ├─ silent for longer than it ever is ─► Next, dialled beside it
//	  │           ├─ the endpoint's fault ─► Report ─► Next, at once
//	  └───────────┴─ the provider's answer ─► React ─► once more, perhaps as another identity
//
// First bytes that have not left ahead leave when the choice is made. While
// those of a GET are out with one member, no other is tried: see repeat.
type group struct {
	name    string
	r       *resolve.Resolver
	members members
	last    atomic.Pointer[member] // that carried a flow

	mu    sync.Mutex
	avoid map[avoided]time.Time // guarded by mu; until when
}

type avoided struct{ gateway, host string }

// NewGroup makes an Upstream that picks one of r's endpoints for each flow,
// and reports to r what becomes of it. Endpoint.Attached may be a Spec: its SNI,
// CA, HTTP2 and NoEarly count. Options.PoolMax is for each gateway, and for each
// identity at a SOCKS5 gateway. The caller runs r.
func NewGroup(name string, r *resolve.Resolver, o Options) (*Upstream, error) {
	if r == nil {
		return nil, fmt.Errorf("upstream %q: a group needs a resolver", name)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	g := &group{name: name, r: r, avoid: make(map[avoided]time.Time)}
	g.members = members{opts: o, name: name, byEP: make(map[*resolve.Endpoint]*member), gates: make(map[gatewayKey]*gateway)}
	u := &Upstream{spec: Spec{Name: name, Scheme: schemeGroup}, streams: g, group: g, net: &netDialer{opts: o}}
	u.packets = packets{u, g}
	return u, nil
}

// tryout is one dial of a flow.
type tryout struct {
	e     *resolve.Endpoint
	began time.Time
	m     *member
	c     flow.StreamConn
	err   error
	trace Trace
}

// open implements protocol.
func (g *group) open(ctx context.Context, a ask) (flow.StreamConn, error) {
	a.late = true
	d := &groupDial{g: g, a: a, key: resolve.Key{App: appOf(ctx), Domain: a.t.Host()}, done: make(chan *tryout, groupTries)}
	won, err := d.run(ctx)
	if err != nil {
		return nil, err
	}
	tr, took := traceOf(ctx), d.picking
	wait := time.Since(d.begin) - took - won.trace.Wait - won.trace.Dial - won.trace.TLS - won.trace.Connect
	*tr = won.trace
	tr.Pick = took
	tr.Wait += max(wait, 0) // for others, before
	if !won.trace.Early {
		if err := writeEarly(ctx, won.c, a.early); err != nil {
			return nil, err
		}
	}
	return won.c, nil
}

// carries says why a provider does not carry flows to t.
func (g *group) carries(e *resolve.Endpoint, t flow.Target) error {
	if err := e.Carries(t.Host(), t.Port); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.avoid) == 0 {
		return nil
	}
	k := avoided{e.Addr(), t.Host()}
	if until, ok := g.avoid[k]; ok && time.Now().Before(until) {
		return fmt.Errorf("%s does not carry %s", e.Name, t.Host())
	}
	return nil
}

func (g *group) avoidHost(e *resolve.Endpoint, host string, d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.avoid) >= maxAvoided {
		clear(g.avoid)
	}
	g.avoid[avoided{e.Addr(), host}] = time.Now().Add(d)
}

// DialPackets implements PacketDialer.
func (g *group) DialPackets(ctx context.Context, t flow.Target) (net.PacketConn, error) {
	key := resolve.Key{App: appOf(ctx), Domain: t.Host(), UDP: true}
	e, err := g.r.Pick(key)
	if err != nil {
		return nil, groupFault(g.r, err)
	}
	var tried []*resolve.Endpoint
	for {
		tried = append(tried, e)
		g.r.Begin(e)
		at := &tryout{e: e}
		var c net.PacketConn
		if at.m, err = g.members.get(e); err == nil {
			if at.m.packets == nil {
				err = fault(Protocol, fmt.Errorf("%s carries no UDP", e.Name), "")
			} else {
				c, err = at.m.packets.DialPackets(ctx, t)
			}
		}
		if err == nil {
			g.report(at, resolve.Outcome{Kind: resolve.Success})
			return c, nil
		}
		o := resolve.Outcome{Kind: resolve.Canceled}
		var fe *Error
		if errors.As(err, &fe) && ctx.Err() == nil {
			o = resolve.Outcome{Kind: outcomeOf(fe.Kind), Text: fe.Error()}
			if refusesUDP(err) {
				o.Kind = resolve.NoUDP
			}
		}
		g.report(at, o)
		if ctx.Err() != nil || fe == nil || !fe.FromUpstream() && o.Kind != resolve.NoUDP || len(tried) >= groupTries {
			return nil, err
		}
		if e, _ = g.r.Next(key, tried); e == nil {
			return nil, err
		}
	}
}

// check asks the best endpoints until one is fine.
func (g *group) check(ctx context.Context, _ *Spec) error {
	e, err := g.r.Pick(resolve.Key{})
	if err != nil {
		return groupFault(g.r, err)
	}
	var tried []*resolve.Endpoint
	for {
		tried = append(tried, e)
		g.r.Begin(e)
		err := g.checkOne(ctx, e)
		o := resolve.Outcome{Kind: resolve.Target} // says that it works
		var fe *Error
		switch {
		case ctx.Err() != nil:
			o.Kind = resolve.Canceled
		case errors.As(err, &fe):
			o = resolve.Outcome{Kind: outcomeOf(fe.Kind), Status: fe.Status, Text: fe.Error()}
		}
		g.r.Report(e, o)
		if err == nil || fe != nil && fe.Kind == Target {
			return err
		}
		next, _ := g.r.Next(resolve.Key{}, tried)
		if next == nil || ctx.Err() != nil || len(tried) >= groupTries {
			return err
		}
		e = next
	}
}

func (g *group) checkOne(ctx context.Context, e *resolve.Endpoint) error {
	m, err := g.members.get(e)
	if err != nil {
		return err
	}
	defer g.members.release(m)
	return m.streams.check(ctx, &m.spec)
}

func (g *group) ready(ctx context.Context) (time.Duration, error) {
	return 0, errors.ErrUnsupported // there is no one gateway
}

func (g *group) flush(again bool) {
	g.members.flush(again)
	g.r.NetworkChanged()
}

func (g *group) close() { g.members.close() }

// groupFault says why there is nobody to dial.
func groupFault(r *resolve.Resolver, err error) *Error {
	var un *resolve.Unavailable
	switch {
	case errors.As(err, &un) && un.Cause == resolve.Auth:
		return fault(Auth, err, hintAuth)
	case errors.As(err, &un):
		return fault(Refused, err, "")
	case errors.Is(err, resolve.ErrNoUDP):
		return targetFault(flow.Forbidden, err)
	}
	return fault(Unreachable, r.Empty(), "check the url of the list, and what it answers; `atlantic upstreams` shows it")
}

// outcomeOf is what a failure means to the resolver.
func outcomeOf(k Kind) resolve.OutcomeKind {
	switch k {
	case Timeout:
		return resolve.Timeout
	case Auth:
		return resolve.Auth
	case Target:
		return resolve.Target
	}
	return resolve.Refused
}

var (
	_ protocol     = (*group)(nil)
	_ PacketDialer = (*group)(nil)
)
