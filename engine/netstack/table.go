package netstack

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

const tableBuckets = 1 << 15

// table is a hash table whose readers take no lock: two queues look up every
// packet, while flows come and go thousands of times more rarely. A node that
// has been removed keeps its next pointer, so that a reader standing on it
// finds its way; the garbage collector frees it when the last reader is gone.
type table[V any] struct {
	seed    maphash.Seed
	mu      sync.Mutex // held to change buckets
	buckets []atomic.Pointer[node[V]]
	count   atomic.Int64
}

type node[V any] struct {
	key   tuple
	value *V
	next  atomic.Pointer[node[V]]
}

func newTable[V any]() *table[V] {
	return &table[V]{seed: maphash.MakeSeed(), buckets: make([]atomic.Pointer[node[V]], tableBuckets)}
}

func (t *table[V]) bucket(key *tuple) *atomic.Pointer[node[V]] {
	return &t.buckets[key.hash(t.seed)%tableBuckets]
}

// get returns the value of key, or nil.
func (t *table[V]) get(key *tuple) *V {
	for n := t.bucket(key).Load(); n != nil; n = n.next.Load() {
		if n.key == *key {
			return n.value
		}
	}
	return nil
}

// getOrPut returns the value that key has; if it has none, key gets make() and
// that is returned. A nil from make changes nothing.
func (t *table[V]) getOrPut(key tuple, make func() *V) (v *V, made bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.get(&key); v != nil {
		return v, false
	}
	if v = make(); v == nil {
		return nil, false
	}
	b := t.bucket(&key)
	n := &node[V]{key: key, value: v}
	n.next.Store(b.Load())
	b.Store(n)
	t.count.Add(1)
	return v, true
}

// remove takes key out if its value is v, and reports whether it was.
func (t *table[V]) remove(key tuple, v *V) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.bucket(&key)
	for n := at.Load(); n != nil; at, n = &n.next, n.next.Load() {
		if n.key == key && n.value == v {
			at.Store(n.next.Load())
			t.count.Add(-1)
			return true
		}
	}
	return false
}

// each calls f for every value, also for one that comes or goes meanwhile.
// f may remove values.
func (t *table[V]) each(f func(tuple, *V)) {
	for i := range t.buckets {
		for n := t.buckets[i].Load(); n != nil; n = n.next.Load() {
			f(n.key, n.value)
		}
	}
}
