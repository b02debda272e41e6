package dns

import (
	"net/netip"
	"sync"
	"time"
)

// memory knows, in real mode, which name led to an address.
type memory struct {
	mu    sync.Mutex
	names map[netip.Addr]remembered // guarded by mu
}

type remembered struct {
	name    string // "" if several names lead here
	expires time.Time
}

// rememberAtLeast: apps keep addresses longer than a short TTL says.
const rememberAtLeast = time.Minute

func newMemory() *memory { return &memory{names: map[netip.Addr]remembered{}} }

func (m *memory) add(a netip.Addr, name string, ttl time.Duration) {
	now := time.Now()
	r := remembered{name, now.Add(max(ttl, rememberAtLeast))}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.names[a]; ok && now.Before(old.expires) {
		if old.name != name {
			r.name = ""
		}
		if old.expires.After(r.expires) {
			r.expires = old.expires
		}
	} else if !ok && len(m.names) >= maxRemembered {
		m.evict(now)
	}
	m.names[a] = r
}

// evict makes room: the expired of a sample, or any one.
func (m *memory) evict(now time.Time) {
	n, gone := 0, false
	var last netip.Addr
	for a, r := range m.names {
		if last = a; now.After(r.expires) {
			delete(m.names, a)
			gone = true
		}
		if n++; n == 64 {
			break
		}
	}
	if !gone {
		delete(m.names, last)
	}
}

func (m *memory) name(a netip.Addr) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.names[a]; ok && time.Now().Before(r.expires) {
		return r.name
	}
	return ""
}
