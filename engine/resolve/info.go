package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Info is what people may see of an endpoint: no credentials.
type Info struct {
	Name     string // the member's
	Source   string // the provider's or list's, "" for a gateway
	Scheme   string
	Address  string    // host:port
	State    string    // ok, open, half-open
	Error    string    // the last failure, "" if the last dial succeeded
	RetryAt  time.Time // when an open circuit is tried again
	Rank     int       // from 1
	Weight   int
	UDP      bool
	Measured bool          // Connect is known
	Connect  time.Duration // decaying mean of the time until the proxy is ready
	P95      time.Duration // 0 if too little is known
	Success  float64       // 0 to 1, decaying
	Pending  int64         // dials under way
	Dials    uint64
	Failures uint64

	// Only in what Sessions and NewSession return.
	Session string // its id
	App     string // whom it serves: one of both, or neither
	Domain  string
	Since   time.Time
	Expires time.Time
}

// List shows the members, best first.
func (r *Resolver) List() []Info {
	s, now := r.snap.Load(), time.Now()
	out := make([]Info, 0, len(s.ranked))
	for i, m := range s.ranked {
		out = append(out, m.info(now, i+1))
	}
	return out
}

func (m *member) info(now time.Time, rank int) Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.health
	in := Info{
		Name: m.name, Source: m.source, Scheme: m.scheme, Address: net.JoinHostPort(m.host, strconv.Itoa(int(m.port))),
		State: "ok", Error: h.text, Rank: rank, Weight: m.weight, UDP: m.carriesUDP(), Measured: !h.measured.IsZero(),
		P95: time.Duration(m.hedge.Load()), Success: h.rate(now),
		Pending: max(m.pending.Load(), 0), Dials: m.begun.Load(), Failures: m.failed.Load(),
	}
	if in.Measured {
		in.Connect = time.Duration(h.connect.sum / h.connect.weight * float64(time.Millisecond))
	}
	switch m.gate.Load() {
	case open:
		in.State, in.RetryAt = "open", h.until
	case half, trial:
		in.State = "half-open"
	}
	return in
}

// Sessions shows the identities in use, the newest first. Those for one
// connection only are not among them.
func (r *Resolver) Sessions() []Info {
	s, now := r.snap.Load(), time.Now()
	var out []Info
	for i, m := range s.ranked {
		if m.ids == nil {
			continue
		}
		for _, b := range m.ids.bindings() {
			out = append(out, m.sessionInfo(now, i+1, b, b.ep.Load()))
		}
	}
	slices.SortStableFunc(out, func(a, b Info) int { return b.Since.Compare(a.Since) })
	return out
}

func (m *member) sessionInfo(now time.Time, rank int, b *binding, e *Endpoint) Info {
	in := m.info(now, rank)
	in.Session, in.Since, in.Expires = e.Session, e.Since, e.Expires
	switch m.ids.scope {
	case PerApp:
		in.App = b.key
	case PerDomain:
		in.Domain = b.key
	}
	return in
}

// ErrNoSessions says that there is no identity to renew.
var ErrNoSessions = errors.New("there are no sessions to renew")

// NewSession makes a new identity for k, has verify dial through it, and only
// then lets new flows use it; flows that run stay with the old one. If verify
// fails, the old one stays. verify may be nil. The zero Key renews all
// identities; one of the new ones is verified. It blocks as long as verify
// does.
func (r *Resolver) NewSession(ctx context.Context, k Key, verify func(context.Context, *Endpoint) error) (Info, error) {
	s := r.snap.Load()
	if len(s.members) == 0 {
		return Info{}, ErrEmpty
	}
	ki := r.keys.info(k)
	m := s.first(ki, r.rand)
	if m == nil || !m.renewable() {
		i := slices.IndexFunc(s.ranked, (*member).renewable)
		if i < 0 {
			return Info{}, ErrNoSessions
		}
		m = s.ranked[i]
	}
	e := m.ids.fresh()
	e.binding = m.ids.bound(ki)
	if verify != nil {
		if err := verify(ctx, e); err != nil {
			return Info{}, fmt.Errorf("verify a new session of %s: %w", m.name, err)
		}
	}
	if (k == Key{}) {
		for _, other := range m.ids.bindings() {
			if other != e.binding {
				m.ids.rotate(other.ep.Load())
			}
		}
	}
	r.retire(e.binding.ep.Swap(e))
	return m.sessionInfo(time.Now(), slices.Index(s.ranked, m)+1, e.binding, e), nil
}

func (m *member) renewable() bool { return m.ids != nil && m.ids.scope != PerConnection }

// bound is the binding of a key; if it has none yet, it gets one.
func (ids *identities) bound(ki *keyInfo) *binding {
	if !ids.keyed() {
		return &ids.shared
	}
	if b := ids.find(ki); b != nil {
		return b
	}
	return ids.bind(ki)
}

// Carries is nil if e's provider carries flows to host (a name, or an address
// as text) and port, or says in words for people why not.
func (e *Endpoint) Carries(host string, port uint16) error {
	if e.m == nil {
		return nil
	}
	if e.m.names {
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
			return fmt.Errorf("%s takes names only, not addresses", e.Name)
		}
	}
	if len(e.m.ports) > 0 && !slices.Contains(e.m.ports, port) {
		return fmt.Errorf("%s does not carry port %d", e.Name, port)
	}
	return nil
}
