package upstream

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

const (
	maxMembers  = 256              // identities that are remembered
	memberIdle  = 10 * time.Minute // after which one may be forgotten
	sweepMember = time.Minute      // how often that is looked at
)

// gateway is what the identities at one proxy share. For HTTP these are the
// connections too: they do not know of identities before the request does.
type gateway struct {
	spec    Spec      // without credentials
	streams protocol  // nil for SOCKS5, which authenticates each connection
	prover  *prover   // of early data
	stats   *counters // of streams
	pace    *pace     // of answers to them; nil for SOCKS5
	used    time.Time // guarded by members.mu
}

// member is one identity at a gateway, as an Upstream.
type member struct {
	*Upstream
	gate  *gateway
	own   bool      // the connections are this identity's alone, and are closed with it
	used  time.Time // guarded by members.mu
	users int       // guarded by members.mu
	kept  bool      // guarded by members.mu; others may get it
}

// gatewayKey is all of a Spec that a connection depends on, or a verdict on it.
type gatewayKey struct {
	scheme, addr, sni string
	noHTTP1, noHTTP2  bool           // see Spec.HTTP2
	ca                *x509.CertPool // see trustLocked
	noEarly           bool
}

// members are the Upstreams of a group, made when first wanted and forgotten
// when not wanted for long: sessions come and go.
type members struct {
	opts Options
	name string // the group's

	mu     sync.Mutex
	byEP   map[*resolve.Endpoint]*member // guarded by mu
	gates  map[gatewayKey]*gateway       // guarded by mu
	trust  []*x509.CertPool              // guarded by mu; those that gates have had, no two of them equal
	swept  time.Time                     // guarded by mu
	closed bool                          // guarded by mu
}

// get gives e's member; release must follow.
func (ms *members) get(e *resolve.Endpoint) (*member, error) {
	now := time.Now()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.closed {
		return nil, errPoolClosed()
	}
	m := ms.byEP[e]
	if m == nil {
		var err error
		if m, err = ms.newMember(e); err != nil {
			return nil, err
		}
		if m.kept = !e.OneShot; m.kept {
			ms.sweepLocked(now)
			ms.byEP[e] = m
		}
	}
	m.users++
	m.used, m.gate.used = now, now
	return m, nil
}

// release ends what get began.
func (ms *members) release(m *member) {
	ms.mu.Lock()
	m.users--
	gone := m.users == 0 && !m.kept
	ms.mu.Unlock()
	if gone && m.own {
		m.streams.close()
	}
}

// sweepLocked forgets who has not been wanted for long, and the one that was
// not for longest if there are too many.
func (ms *members) sweepLocked(now time.Time) {
	if now.Sub(ms.swept) < sweepMember && len(ms.byEP) < maxMembers {
		return
	}
	ms.swept = now
	var oldest *resolve.Endpoint
	for e, m := range ms.byEP {
		if m.users > 0 {
			continue
		}
		if now.Sub(m.used) > memberIdle || !e.Expires.IsZero() && now.After(e.Expires) {
			ms.forgetLocked(e, m)
			continue
		}
		if oldest == nil || m.used.Before(ms.byEP[oldest].used) {
			oldest = e
		}
	}
	if len(ms.byEP) >= maxMembers && oldest != nil {
		ms.forgetLocked(oldest, ms.byEP[oldest])
	}
	ms.sweepGatesLocked(now)
}

// sweepGatesLocked forgets gateways without identities that nobody has dialled
// for long: the proxies of a list come and go.
func (ms *members) sweepGatesLocked(now time.Time) {
	inUse := make(map[*gateway]bool, len(ms.byEP))
	for _, m := range ms.byEP {
		inUse[m.gate] = true
	}
	for k, g := range ms.gates {
		if inUse[g] || now.Sub(g.used) <= memberIdle {
			continue
		}
		delete(ms.gates, k)
		if g.streams != nil {
			g.streams.close()
		}
	}
}

// verdict is what is known of the gateway at scheme://addr: whether it carries
// early data, and how many connections to it wait.
func (ms *members) verdict(scheme, addr string) (v Verdict, warm int) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for k, g := range ms.gates {
		if k.scheme != scheme || k.addr != addr {
			continue
		}
		v = max(v, Verdict(g.prover.verdict.Load()))
		warm += int(g.stats.warm.Load())
		for _, m := range ms.byEP {
			if m.own && m.gate == g {
				warm += int(m.Upstream.stats.warm.Load())
			}
		}
	}
	return v, warm
}

func (ms *members) forgetLocked(e *resolve.Endpoint, m *member) {
	delete(ms.byEP, e)
	m.kept = false
	if m.own {
		m.streams.close() // nobody dials, so that it ends at once
	}
}

// newMember makes an Upstream of e. Called with mu held.
func (ms *members) newMember(e *resolve.Endpoint) (*member, error) {
	s := specOf(e)
	if err := s.Validate(); err != nil {
		return nil, fault(Unreachable, fmt.Errorf("endpoint %s: %w", e.Name, err), "")
	}
	g := ms.gateLocked(s)
	u := &Upstream{spec: s, streams: g.streams, prover: g.prover}
	m := &member{Upstream: u, gate: g, own: g.streams == nil}
	u.hold = func() func() {
		ms.mu.Lock()
		m.users++
		ms.mu.Unlock()
		return func() { ms.release(m) }
	}
	if m.own {
		o := ms.opts
		if e.OneShot {
			o.PoolMax = -1 // nobody else can use its connections
		}
		d := newSOCKS5(&netDialer{opts: o}, s, &u.stats)
		u.streams, u.packets = d, packets{u, d}
	}
	if !e.UDP {
		u.packets = nil
	}
	return m, nil
}

func (ms *members) gateLocked(s Spec) *gateway {
	k := gatewayKey{s.Scheme, s.Addr(), s.SNI, s.HTTP2 != nil && *s.HTTP2, s.HTTP2 != nil && !*s.HTTP2, ms.trustLocked(s.CA), s.NoEarly}
	if g := ms.gates[k]; g != nil {
		return g
	}
	shared := s
	shared.Name, shared.Username, shared.Password = ms.name, "", ""
	g := &gateway{used: time.Now(), spec: shared, prover: &prover{off: shared.NoEarly}, stats: &counters{}}
	nd := &netDialer{opts: ms.opts}
	switch s.Scheme {
	case proxy.HTTP:
		d := newConnect(nd, shared, g.stats)
		g.streams, g.pace = d, &d.line.pace
	case proxy.HTTPS:
		d := newSecure(nd, shared, g.stats)
		g.streams, g.pace = d, &d.line.pace
	}
	face := &Upstream{spec: shared, streams: g.streams, prover: g.prover} // for those who are told
	if ms.opts.EarlyKnown != nil {
		face.SetEarly(ms.opts.EarlyKnown(shared))
	}
	if told := ms.opts.EarlyChanged; told != nil {
		g.prover.changed = func() { told(face) }
	}
	ms.gates[k] = g
	return g
}

// trustLocked is ca or its equal that came first: each upstream has read its
// file itself, and those that trust the same share connections.
func (ms *members) trustLocked(ca *x509.CertPool) *x509.CertPool {
	if slices.Contains(ms.trust, ca) {
		return ca // as for most flows: comparing takes microseconds
	}
	if i := slices.IndexFunc(ms.trust, ca.Equal); i >= 0 {
		return ms.trust[i]
	}
	ms.trust = append(ms.trust, ca)
	return ca
}

// specOf is what e says; a Spec in Attached adds SNI, CA, HTTP2 and NoEarly.
func specOf(e *resolve.Endpoint) Spec {
	s, _ := e.Attached.(Spec)
	s.Name, s.Scheme, s.Host, s.Port = e.Name, e.Scheme, e.Host, e.Port
	s.Username, s.Password = e.Username, e.Password
	return s
}

// each calls f for everything that holds connections, with mu held.
func (ms *members) each(f func(protocol, *counters)) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, g := range ms.gates {
		if g.streams != nil {
			f(g.streams, g.stats)
		}
	}
	for _, m := range ms.byEP {
		if m.own {
			f(m.streams, &m.Upstream.stats)
		}
	}
}

func (ms *members) flush(again bool) {
	ms.each(func(p protocol, _ *counters) { p.flush(again) })
}

func (ms *members) close() {
	ms.mu.Lock()
	ms.closed = true
	provers := make([]*prover, 0, len(ms.gates))
	for _, g := range ms.gates {
		provers = append(provers, g.prover)
	}
	ms.mu.Unlock()
	for _, p := range provers {
		p.close()
	}
	ms.each(func(p protocol, _ *counters) { p.close() })
}

// stats sums up what is kept.
func (ms *members) stats(s *Stats) {
	ms.each(func(p protocol, c *counters) {
		s.Warm += int(c.warm.Load())
		s.UDPBogus += c.udpBogus.Load()
		if d, ok := p.(*secure); ok {
			s.Sessions += d.sessions()
		}
	})
}

// connections counts those of m's pool, and says how they do.
func (m *member) connections() *counters {
	if m.own {
		return &m.Upstream.stats
	}
	return m.gate.stats
}

// ready is how long it takes until e's gateway is ready for a request.
func (ms *members) ready(ctx context.Context, e *resolve.Endpoint) (time.Duration, error) {
	m, err := ms.get(e)
	if err != nil {
		return 0, err
	}
	defer ms.release(m)
	return m.streams.ready(ctx)
}
