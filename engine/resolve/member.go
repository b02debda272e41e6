package resolve

import (
	"hash/fnv"
	"math"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// member is one gateway with one account. What Pick reads is atomic.
type member struct {
	name     string
	source   string
	scheme   string
	host     string
	port     uint16
	weight   int
	udp      bool
	attached any
	ports    []uint16 // of targets; none: any
	names    bool     // targets must be names
	hash     uint64   // of what it is, the same after a restart
	account  *Account // nil: fixed credentials

	static *Endpoint // nil if identities change
	ids    *identities

	gate    atomic.Uint32
	proven  atomic.Bool // a dial has succeeded
	refuses atomic.Bool // the circuit is open because the provider said no
	pending atomic.Int64
	begun   atomic.Uint64
	failed  atomic.Uint64
	probing atomic.Bool
	hedge   atomic.Int64  // nanoseconds
	noUDP   atomic.Int64  // unix ns until when UDP is not tried: it was refused
	ranked  atomic.Uint64 // Float64bits of the score in the snapshot

	mu     sync.Mutex
	health health // guarded by mu
}

// admit says whether a flow may be sent there now. Of those that would try a
// half-open circuit, it takes one.
func (m *member) admit() bool {
	switch m.gate.Load() {
	case closed:
		return true
	case half:
		return m.gate.CompareAndSwap(half, trial)
	}
	return false
}

// UDPAgain is how long a proxy's refusal of UDP is believed.
const UDPAgain = 10 * time.Minute

// carries says whether a flow with k may be sent there at all.
func (m *member) carries(k Key) bool { return !k.UDP || m.carriesUDP() }

func (m *member) carriesUDP() bool { return m.udp && time.Now().UnixNano() >= m.noUDP.Load() }

// mayTry is admit without taking the one try.
func (m *member) mayTry() bool { g := m.gate.Load(); return g == closed || g == half }

// record takes an outcome. It says whether the ranking may have changed.
func (m *member) record(now time.Time, o Outcome, rand func() uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o.Kind == NoUDP {
		m.noUDP.Store(now.Add(UDPAgain).UnixNano())
	}
	was := m.gate.Load()
	is := m.health.record(now, was, o, rand)
	if o.Kind == Success && !m.proven.Load() {
		m.proven.Store(true)
	}
	m.refuses.Store(is == open && (m.health.cause == Auth || m.health.cause == RateLimited))
	if is != was {
		m.gate.Store(is)
	}
	m.hedge.Store(int64(m.health.delays.p95()))
	if was != is {
		return true
	}
	score, ranked := m.health.score(now, m.pending.Load()), math.Float64frombits(m.ranked.Load())
	return score > ranked*1.3 || score < ranked/1.3
}

// reopen lets an open circuit be tried once its time has come, and gives up a
// trial that nobody reports about. It returns when to look again, zero if
// there is no need; due says that the circuit waits for a Probe.
func (m *member) reopen(now time.Time, probed bool) (next time.Time, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &m.health
	switch m.gate.Load() {
	case open:
		if now.Before(h.until) {
			return h.until, false
		}
		if probed {
			return time.Time{}, true
		}
		m.refuses.Store(false)
		h.trialAt = time.Time{}
		m.gate.Store(half)
	case trial:
		if h.trialAt.IsZero() {
			h.trialAt = now
		} else if now.Sub(h.trialAt) > trialLimit {
			h.trialAt = time.Time{}
			m.gate.CompareAndSwap(trial, half)
		}
		return now.Add(trialLimit), false
	default:
		h.trialAt = time.Time{}
	}
	return time.Time{}, false
}

// trialLimit is how long a flow that tries a half-open circuit may take: more
// than any dial.
const trialLimit = 30 * time.Second

// endpoint completes what credentials.mint or a Gateway began.
func (m *member) endpoint(e *Endpoint, id uint64, now time.Time) *Endpoint {
	e.ID, e.Name, e.Scheme, e.Host, e.Port = id, m.name, m.scheme, m.host, m.port
	e.Weight, e.UDP, e.Attached, e.Since, e.m = m.weight, m.udp, m.attached, now, m
	return e
}

func newMember(name, source, scheme, host string, port uint16, weight int, udp bool, attached any) *member {
	m := &member{name: name, source: source, scheme: scheme, host: host, port: port, weight: max(weight, 1), udp: udp, attached: attached}
	if m.name == "" {
		m.name = scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	m.ranked.Store(math.Float64bits(math.MaxFloat32))
	return m
}

// fromGateway makes the member of a proxy with fixed credentials.
func (r *Resolver) fromGateway(g Gateway, source string) *member {
	m := newMember(g.Name, source, g.Scheme, g.Host, g.Port, g.Weight, g.UDP, g.Attached)
	m.hash = hashOf(g.Scheme, g.Host, strconv.Itoa(int(g.Port)), g.Username)
	m.static = m.endpoint(&Endpoint{Username: g.Username, Password: g.Password}, r.nextID.Add(1), time.Now())
	return m
}

// fromAccount makes the member of an account at a provider.
func (r *Resolver) fromAccount(a *Account) (*member, error) {
	c, err := a.compile()
	if err != nil {
		return nil, err
	}
	g := c.gateway
	m := newMember(a.Name, a.Name, g.Scheme, g.Host, g.Port, a.Weight, g.UDP, a.Attached)
	m.account, m.ports, m.names = a, g.Ports, g.NamesOnly
	m.hash = hashOf(g.Scheme, g.Host, strconv.Itoa(int(g.Port)), a.Name)
	if c.session == nil {
		m.static = m.endpoint(c.mint(r.rand), r.nextID.Add(1), time.Now())
		return m, nil
	}
	m.ids = newIdentities(r, m, c)
	return m, nil
}

// hashOf is FNV-1a, and so the same on every start.
func hashOf(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return mix(h.Sum64())
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
