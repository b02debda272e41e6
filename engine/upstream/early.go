package upstream

import (
	"context"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Verdict is what is known about a proxy and early data: the client's first
// bytes in the same write as the request for the tunnel, before the answer.
type Verdict uint8

const (
	EarlyUnknown Verdict = iota // nothing is known yet
	EarlyCarries                // it was seen to carry them
	EarlyRefuses                // it loses them or hangs up: plain order only
)

func (v Verdict) String() string {
	switch v {
	case EarlyCarries:
		return "carries"
	case EarlyRefuses:
		return "refuses"
	}
	return "unknown"
}

// Early is the verdict now; a group's is that of the gateway that carried its
// last flow.
func (u *Upstream) Early() Verdict {
	if u.group != nil {
		if m := u.group.last.Load(); m != nil {
			return m.Early()
		}
	}
	if u.prover == nil {
		return EarlyUnknown
	}
	return Verdict(u.prover.verdict.Load())
}

// EarlyAt is the verdict on one gateway of a group, by its scheme and host:port,
// and how many connections to it wait. EarlyUnknown and 0 of one that was never
// dialled.
func (u *Upstream) EarlyAt(scheme, addr string) (v Verdict, warm int) {
	if u.group == nil {
		return EarlyUnknown, 0
	}
	return u.group.members.verdict(scheme, addr)
}

// SetEarly gives the verdict that an earlier run came to; where early data is
// off it changes nothing. Options.EarlyChanged is not called.
func (u *Upstream) SetEarly(v Verdict) {
	if u.prover == nil || u.prover.off {
		return
	}
	u.prover.believe(v)
}

// WantsEarly says that a flow to t gains by handing its client's first bytes
// to DialStream, so that the client is to be accepted before the upstream has
// answered: the upstream carries them, or this flow may find out. While the
// upstream fails it does not, so that clients are refused. It takes no lock.
func (u *Upstream) WantsEarly(t flow.Target) bool {
	p := u.prover
	if u.group != nil {
		if m := u.group.last.Load(); m != nil {
			p = m.prover
		}
	}
	if p == nil || t.Name == "" && t.Addr.Is6() {
		return false // a refusal has to reach the client as one (RFC 8305)
	}
	if u.Early() != EarlyCarries && !u.stats.worked.Load() {
		return false // where nothing works there is nothing to find out
	}
	return u.stats.failures.Load() == 0 && p.wants()
}

type appKey struct{}

// WithApp names the program that a flow belongs to, for policies that keep a
// program on one exit.
func WithApp(ctx context.Context, app string) context.Context {
	if app == "" {
		return ctx
	}
	return context.WithValue(ctx, appKey{}, app)
}

func appOf(ctx context.Context) string {
	app, _ := ctx.Value(appKey{}).(string)
	return app
}
