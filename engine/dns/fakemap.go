package dns

import (
	"container/list"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

const (
	first4 = 256     // offset of slot 0 in Fake4
	first6 = 1 << 32 // and in Fake6
	// crashGap is how many slots are skipped after a start: names of the last
	// seconds before a crash were not saved, and what apps still hold for them
	// must not lead elsewhere.
	crashGap = 2048
)

// fakeMap gives every name a slot, and with it one address per family; slots
// are reused, least recently used first, when all are taken.
type fakeMap struct {
	p4, p6 netip.Prefix
	size   int // slots

	// All below is guarded by mu.
	mu     sync.RWMutex
	byName map[string]*list.Element // of *fakeEntry
	bySlot map[uint32]*list.Element
	lru    *list.List // front: oldest, to usedStep
	next   uint32     // the next slot never given, mod size
}

// usedStep is how exactly the last use of a name is known: noting each would
// have all queries and flows wait for one another.
const usedStep = time.Second

type fakeEntry struct {
	name string
	slot uint32
	used time.Time // guarded by the map's mu
}

func newFakeMap(p4, p6 netip.Prefix) (*fakeMap, error) {
	m := &fakeMap{p4: p4.Masked(), p6: p6.Masked(), size: maxNames,
		byName: map[string]*list.Element{}, bySlot: map[uint32]*list.Element{}, lru: list.New()}
	if p4.IsValid() {
		if !p4.Addr().Is4() || p4.Bits() > 22 || p4.Bits() < 4 {
			return nil, fmt.Errorf("fake range %s: an IPv4 network of /22 or larger is needed", p4)
		}
		m.size = min(m.size, 1<<(32-p4.Bits())-first4-1) // the last is broadcast
	}
	if p6.IsValid() && (!p6.Addr().Is6() || p6.Bits() > 80) {
		return nil, fmt.Errorf("fake range %s: an IPv6 network of /80 or larger is needed", p6)
	}
	return m, nil
}

func (m *fakeMap) contains(a netip.Addr) bool {
	return m.p4.IsValid() && m.p4.Contains(a) || m.p6.IsValid() && m.p6.Contains(a)
}

// slot returns the name's slot, giving it one if needed. isNew says that the
// mapping has changed; ok is false if every slot is in recent use.
func (m *fakeMap) slot(name string) (slot uint32, isNew, ok bool) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.byName[name]; e != nil {
		e.Value.(*fakeEntry).used = now
		m.lru.MoveToBack(e)
		return e.Value.(*fakeEntry).slot, false, true
	}
	if len(m.byName) >= m.size {
		oldest := m.lru.Front()
		e := oldest.Value.(*fakeEntry)
		if now.Sub(e.used) < reuseAfter+usedStep {
			return 0, false, false
		}
		m.lru.Remove(oldest)
		delete(m.byName, e.name)
		delete(m.bySlot, e.slot)
		slot = e.slot
	} else {
		for m.bySlot[m.next%uint32(m.size)] != nil {
			m.next++
		}
		slot = m.next % uint32(m.size)
		m.next = slot + 1
	}
	m.put(&fakeEntry{name, slot, now})
	return slot, true, true
}

// known returns the slot of a name that has one. It does not allocate.
func (m *fakeMap) known(name []byte, now time.Time) (slot uint32, ok bool) {
	m.mu.RLock()
	e, fresh := used(m.byName[string(name)], now)
	m.mu.RUnlock()
	if e == nil {
		return 0, false
	}
	if !fresh {
		m.touch(e.slot, now)
	}
	return e.slot, true
}

// used is the entry at el, nil if there is none, and whether its last use needs
// no noting. The caller holds mu, if only for reading.
func used(el *list.Element, now time.Time) (e *fakeEntry, fresh bool) {
	if el == nil {
		return nil, false
	}
	e = el.Value.(*fakeEntry)
	return e, now.Sub(e.used) < usedStep
}

// touch notes that slot is in use.
func (m *fakeMap) touch(slot uint32, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if el := m.bySlot[slot]; el != nil {
		el.Value.(*fakeEntry).used = now
		m.lru.MoveToBack(el)
	}
}

// put enters e as the most recently used. The caller holds mu.
func (m *fakeMap) put(e *fakeEntry) {
	element := m.lru.PushBack(e)
	m.byName[e.name], m.bySlot[e.slot] = element, element
}

// name returns whose fake address a is, "" if nobody's.
func (m *fakeMap) name(a netip.Addr) string {
	slot, ok := m.slotOf(a)
	if !ok {
		return ""
	}
	now := time.Now()
	m.mu.RLock()
	e, fresh := used(m.bySlot[slot], now)
	m.mu.RUnlock()
	if e == nil {
		return ""
	}
	if !fresh {
		m.touch(slot, now)
	}
	return e.name
}

func (m *fakeMap) slotOf(a netip.Addr) (uint32, bool) {
	var off uint64
	switch {
	case a.Is4() && m.p4.Contains(a):
		x, base := a.As4(), m.p4.Addr().As4()
		off = uint64(binary.BigEndian.Uint32(x[:])-binary.BigEndian.Uint32(base[:])) - first4
	case a.Is6() && m.p6.Contains(a):
		x, base := a.As16(), m.p6.Addr().As16()
		if [8]byte(x[:8]) != [8]byte(base[:8]) {
			return 0, false
		}
		off = binary.BigEndian.Uint64(x[8:]) - binary.BigEndian.Uint64(base[8:]) - first6
	}
	if off >= uint64(m.size) { // also where the subtraction wrapped
		return 0, false
	}
	return uint32(off), a.IsValid()
}

func (m *fakeMap) addr4(slot uint32) netip.Addr {
	b := m.p4.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+first4+slot)
	return netip.AddrFrom4(b)
}

func (m *fakeMap) addr6(slot uint32) netip.Addr {
	b := m.p6.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+first6+uint64(slot))
	return netip.AddrFrom16(b)
}

// memory knows, in real mode, which name led to an address.
type memory struct {
	mu    sync.RWMutex
	names map[netip.Addr]remembered // guarded by mu
}

type remembered struct {
	name    string // "" if several names lead here
	expires time.Time
}

// rememberAtLeast (to usedStep): apps keep addresses longer than a short TTL says.
const rememberAtLeast = time.Minute

func newMemory() *memory { return &memory{names: map[netip.Addr]remembered{}} }

func (m *memory) add(a netip.Addr, name string, ttl time.Duration) {
	now := time.Now()
	r := remembered{name, now.Add(max(ttl, rememberAtLeast))}
	m.mu.RLock()
	old, ok := m.names[a]
	m.mu.RUnlock()
	if ok && now.Before(old.expires) && old.name == name && r.expires.Sub(old.expires) < usedStep {
		return // as good as known: readers need not wait
	}
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
	m.mu.RLock()
	defer m.mu.RUnlock()
	if r, ok := m.names[a]; ok && time.Now().Before(r.expires) {
		return r.name
	}
	return ""
}
