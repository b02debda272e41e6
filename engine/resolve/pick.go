package resolve

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Resolver chooses endpoints. All methods may be called at any time by any
// goroutine.
type Resolver struct {
	opt  Options
	log  *slog.Logger
	rand func() uint64

	snap   atomic.Pointer[snapshot]
	keys   keyCache
	nextID atomic.Uint64
	lists  []*subscription

	wake   chan struct{} // of one: the ranking may have changed
	refill chan struct{} // of one: a batch of identities is half gone

	mu      sync.Mutex // held while the snapshot is replaced; guards the rest
	members []*member  // all, in the order of Options.Sources
	fixed   [][]*member
	read    chan struct{} // closed and replaced when something of a list has been read, or could not be
}

// New makes a Resolver; it does no I/O and starts nothing. Lists are empty
// until Run or Refresh has read them.
func New(o Options) (*Resolver, error) {
	r := &Resolver{opt: o, log: o.Log, rand: o.Rand, wake: make(chan struct{}, 1), refill: make(chan struct{}, 1), read: make(chan struct{})}
	r.keys.seed = maphash.MakeSeed()
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.rand == nil {
		r.rand = rand.Uint64
	}
	if int(o.Policy) >= len(policyNames) {
		return nil, fmt.Errorf("group %q: policy is unknown", o.Name)
	}
	for _, s := range o.Sources {
		var ms []*member
		for i, g := range s.Gateways {
			if err := g.spec().Validate(); err != nil {
				return nil, fmt.Errorf("group %q: gateway %d: %w", o.Name, i+1, err)
			}
			ms = append(ms, r.fromGateway(g, ""))
		}
		if s.Account != nil {
			m, err := r.fromAccount(s.Account)
			if err != nil {
				return nil, fmt.Errorf("provider %q: %w", s.Account.Name, err)
			}
			ms = append(ms, m)
		}
		if s.List != nil {
			sub, err := newSubscription(r, s.List, len(r.fixed))
			if err != nil {
				return nil, fmt.Errorf("list %q: %w", s.List.Name, err)
			}
			r.lists = append(r.lists, sub)
		}
		r.fixed = append(r.fixed, ms)
	}
	r.assemble()
	return r, nil
}

// assemble makes members of what the sources hold, and the first snapshot of
// them. Called with mu held, or by New.
func (r *Resolver) assemble() {
	r.members = nil
	for _, ms := range r.fixed {
		r.members = append(r.members, ms...)
	}
	if len(r.members) > maxMembers {
		r.members = r.members[:maxMembers]
	}
	r.snap.Store(rank(r.opt.Policy, r.members, r.snap.Load(), time.Now()))
}

// Pick chooses the endpoint for a flow. Errors: ErrEmpty, ErrNoUDP, *Unavailable. It
// does no I/O and takes no lock, except that the first flow of an app or domain
// with sessions of its own makes one.
func (r *Resolver) Pick(k Key) (*Endpoint, error) {
	s := r.snap.Load()
	var ki *keyInfo
	if s.keyed {
		ki = r.keys.info(k)
	}
	if m := s.first(ki, r.rand); m != nil && m.carries(k) && m.admit() {
		if m.static != nil {
			return m.static, nil
		}
		return m.ids.pick(ki), nil
	}
	return r.pickOther(s, k, ki)
}

// pickOther is Pick where the policy's first choice cannot be had.
func (r *Resolver) pickOther(s *snapshot, k Key, ki *keyInfo) (*Endpoint, error) {
	m := r.search(s, k, ki, nil)
	if m == nil {
		// All circuits are open. An outage of this machine's own network opens
		// them all, and its end must not have to wait for a back-off: try one all
		// the same, unless its provider has said no.
		m = s.best(r.hash(ki), func(m *member) bool { return m.carries(k) && !m.refuses.Load() })
	}
	if m == nil {
		return nil, r.unavailable(s, k)
	}
	return m.identity(ki), nil
}

// Next chooses another one than those tried, for failover and hedging. Errors:
// ErrEmpty, ErrNoOther. Where each connection has an identity of its own, it
// may be another one at the same gateway.
func (r *Resolver) Next(k Key, tried []*Endpoint) (*Endpoint, error) {
	s := r.snap.Load()
	if len(s.members) == 0 {
		return nil, ErrEmpty
	}
	var ki *keyInfo
	if s.keyed {
		ki = r.keys.info(k)
	}
	if m := r.search(s, k, ki, tried); m != nil {
		return m.identity(ki), nil
	}
	for _, e := range tried {
		if m := e.m; m != nil && m.eachAnother() && m.carries(k) && m.admit() {
			return m.identity(ki), nil
		}
	}
	return nil, ErrNoOther
}

// search finds the best member that may be tried and is not behind one of
// tried.
func (r *Resolver) search(s *snapshot, k Key, ki *keyInfo, tried []*Endpoint) *member {
	hash := r.hash(ki)
	for range s.members {
		m := s.best(hash, func(m *member) bool {
			for _, e := range tried {
				if e.m == m {
					return false
				}
			}
			return m.mayTry() && m.carries(k)
		})
		if m == nil || m.admit() {
			return m
		}
	}
	return nil
}

// hash is the key's where the policy goes by it, and otherwise random.
func (r *Resolver) hash(ki *keyInfo) uint64 {
	if r.opt.Policy == Sticky {
		return ki.hash
	}
	return r.rand()
}

// identity is what a flow through m gets.
func (m *member) identity(ki *keyInfo) *Endpoint {
	if m.static != nil {
		return m.static
	}
	return m.ids.pick(ki)
}

// eachAnother says that every connection through m leaves by an exit of its
// own.
func (m *member) eachAnother() bool {
	return m.account != nil && m.account.Session.Scope == PerConnection
}

// unavailable explains why nothing can be picked.
func (r *Resolver) unavailable(s *snapshot, k Key) error {
	if len(s.members) == 0 {
		return ErrEmpty
	}
	if k.UDP && !r.UDP() {
		return ErrNoUDP
	}
	u := &Unavailable{Name: r.opt.Name}
	for _, m := range s.members {
		if !m.carries(k) {
			continue
		}
		m.mu.Lock()
		if h := &m.health; u.Until.IsZero() || h.until.Before(u.Until) {
			u.Cause, u.Until, u.Text = h.cause, h.until, h.text
		}
		m.mu.Unlock()
	}
	return u
}

// UDP says whether any endpoint carries UDP, as far as is known.
func (r *Resolver) UDP() bool {
	return slices.ContainsFunc(r.snap.Load().members, (*member).carriesUDP)
}

// NetworkChanged lets circuits be tried again that opened because gateways
// could not be reached: another network may reach them.
func (r *Resolver) NetworkChanged() {
	for _, m := range r.snap.Load().members {
		m.noUDP.Store(0)
		m.mu.Lock()
		if m.gate.Load() == open && !m.refuses.Load() {
			m.health.until, m.health.opens = time.Time{}, 0
		}
		m.mu.Unlock()
	}
	r.wakeUp()
}

// Begin says that a dial through e starts; Report must follow.
func (r *Resolver) Begin(e *Endpoint) {
	if e.m != nil {
		e.m.pending.Add(1)
		e.m.begun.Add(1)
	}
}

// Report says how a dial that Begin has told of has ended. It does no I/O. An
// outcome that ends the identity has given the key a new one on return.
func (r *Resolver) Report(e *Endpoint, o Outcome) {
	m := e.m
	if m == nil {
		return
	}
	m.pending.Add(-1)
	switch o.Kind {
	case Success, Target, Canceled, NoUDP:
	default:
		m.failed.Add(1)
	}
	changed := m.record(time.Now(), o, r.rand)
	if m.ids != nil {
		m.ids.failed(e, o)
	}
	if changed {
		r.wakeUp()
	}
}

// HedgeAfter is how long to wait for e before another is dialled as well: its
// own 95th percentile, at least 50 ms and at most 3 s; 1 s as long as too
// little is known.
func (r *Resolver) HedgeAfter(e *Endpoint) time.Duration {
	if e.m == nil {
		return hedgeDefault
	}
	if d := time.Duration(e.m.hedge.Load()); d > 0 {
		return min(max(d, hedgeMin), hedgeMax)
	}
	return hedgeDefault
}

func (r *Resolver) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Resolver) refillSoon() {
	select {
	case r.refill <- struct{}{}:
	default:
	}
}

// retire tells the owner that e will not be picked any more.
func (r *Resolver) retire(e *Endpoint) {
	if r.opt.Retired != nil && e != nil {
		r.opt.Retired(e)
	}
}
