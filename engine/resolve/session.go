package resolve

import (
	"sync"
	"sync/atomic"
	"time"
)

// identities gives a member's flows their identities.
//
//	Shared         one binding
//	PerApp         a binding for each process path  ┐ hash table: read without a
//	PerDomain      one for each registrable domain  ┘ lock, written under mu
//	PerConnection  a batch made in advance, each handed out once
type identities struct {
	r     *Resolver
	m     *member
	creds *credentials
	scope Scope

	shared binding
	table  [buckets]atomic.Pointer[node]
	batch  atomic.Pointer[batch]
	mu     sync.Mutex // guards writes of table
}

// The hash table's size. Chains are cut at maxChain, the oldest binding first:
// what pages can make us remember stays bounded.
const (
	buckets  = 256
	maxChain = 32
)

// binding is an identity in use by those who share it.
type binding struct {
	key string // the app or the registrable domain, "" when Shared
	ep  atomic.Pointer[Endpoint]
	// used says that Pick has given ep out since the last sweep; not if Shared.
	used atomic.Bool

	// Of sweep alone:
	seen  time.Time // when an identity was last found in use
	begun uint64    // of the member, then; if Shared
}

// node is a link of a chain. It is immutable.
type node struct {
	b    *binding
	hash uint64
	next *node
}

// strikesToRotate is how many failures in a row to find or reach an exit end an
// identity.
const strikesToRotate = 2

func newIdentities(r *Resolver, m *member, c *credentials) *identities {
	ids := &identities{r: r, m: m, creds: c, scope: m.account.Session.Scope}
	switch ids.scope {
	case Shared:
		ids.mint(&ids.shared)
	case PerConnection:
		ids.batch.Store(ids.newBatch())
	}
	return ids
}

// keyed says whether pick needs a key.
func (ids *identities) keyed() bool { return ids.scope == PerApp || ids.scope == PerDomain }

// fresh makes an identity that nobody has yet.
func (ids *identities) fresh() *Endpoint {
	now := time.Now()
	e := ids.m.endpoint(ids.creds.mint(ids.r.rand), ids.r.nextID.Add(1), now)
	if life := ids.creds.life; life > 0 {
		// A little before the provider ends it, and not all at the same moment.
		early := life/20 + time.Duration(ids.r.rand()%uint64(life/20))
		e.Expires = now.Add(life - early)
	}
	return e
}

func (ids *identities) mint(b *binding) *Endpoint {
	e := ids.fresh()
	e.binding = b
	b.ep.Store(e)
	return e
}

// pick gives a flow its identity. ki may be nil unless keyed.
func (ids *identities) pick(ki *keyInfo) *Endpoint {
	switch ids.scope {
	case Shared:
		return ids.shared.ep.Load()
	case PerConnection:
		return ids.take()
	}
	b := ids.bound(ki)
	if !b.used.Load() {
		b.used.Store(true)
	}
	return b.ep.Load()
}

func (ids *identities) slot(ki *keyInfo) (key string, hash uint64) {
	if ids.scope == PerApp {
		return ki.app, ki.appHash
	}
	return ki.group, ki.groupHash
}

func (ids *identities) find(ki *keyInfo) *binding {
	key, hash := ids.slot(ki)
	for n := ids.table[hash%buckets].Load(); n != nil; n = n.next {
		if n.hash == hash && n.b.key == key {
			return n.b
		}
	}
	return nil
}

// bind makes the binding of a key that has none.
func (ids *identities) bind(ki *keyInfo) *binding {
	ids.mu.Lock()
	defer ids.mu.Unlock()
	if b := ids.find(ki); b != nil {
		return b
	}
	key, hash := ids.slot(ki)
	b := &binding{key: key}
	ids.mint(b)
	at := &ids.table[hash%buckets]
	chain := []*node{{b: b, hash: hash}}
	for n := at.Load(); n != nil; n = n.next {
		if len(chain) == maxChain {
			ids.r.retire(n.b.ep.Load())
			break
		}
		chain = append(chain, n)
	}
	at.Store(link(chain))
	return b
}

// link makes a chain of what nodes hold.
func link(nodes []*node) *node {
	var head *node
	for i := len(nodes) - 1; i >= 0; i-- {
		head = &node{b: nodes[i].b, hash: nodes[i].hash, next: head}
	}
	return head
}

// rotate ends e, if it is still in use: from now on flows get a new identity.
func (ids *identities) rotate(e *Endpoint) {
	b := e.binding
	if b == nil {
		return
	}
	next := ids.fresh()
	next.binding = b
	if b.ep.CompareAndSwap(e, next) {
		ids.r.retire(e)
	}
}

// failed counts a failure of e's exit, and ends e if it has failed for good.
func (ids *identities) failed(e *Endpoint, o Outcome) {
	if ids.m.account.Pinned || e.binding == nil {
		return
	}
	switch {
	case o.Kind == Success, o.Kind == Target, o.Kind == NoUDP:
		if e.strikes.Load() != 0 {
			e.strikes.Store(0)
		}
	case o.Kind == SessionEnded:
		ids.rotate(e)
	case o.Kind == NoExit, o.Kind == Timeout && o.Status != 0:
		if e.strikes.Add(1) >= strikesToRotate {
			ids.rotate(e)
		}
	}
}

// sweep renews what is due and forgets keys that nobody has asked for. It
// returns when to come again, zero for never.
func (ids *identities) sweep(now time.Time) (next time.Time) {
	if ids.scope == Shared {
		b := &ids.shared
		begun := ids.m.begun.Load()
		over, due := ids.idle(b, begun != b.begun, now)
		b.begun = begun
		if e := b.ep.Load(); over || !now.Before(e.Expires) {
			ids.rotate(e)
		}
		return sooner(b.ep.Load().Expires, due)
	}
	if !ids.keyed() {
		return time.Time{}
	}
	ids.mu.Lock()
	defer ids.mu.Unlock()
	for i := range ids.table {
		var keep []*node
		head := ids.table[i].Load()
		dropped := false
		for n := head; n != nil; n = n.next {
			e := n.b.ep.Load()
			used := n.b.used.Swap(false)
			over, due := ids.idle(n.b, used, now)
			if over || !now.Before(e.Expires) {
				if !used {
					dropped = true
					ids.r.retire(e)
					continue
				}
				ids.rotate(e)
				e = n.b.ep.Load()
			}
			keep = append(keep, n)
			next = sooner(next, sooner(e.Expires, due))
		}
		if dropped {
			ids.table[i].Store(link(keep))
		}
	}
	return next
}

// idle says that the vendor has ended b's identity for want of traffic, or when
// that will be, zero if never. To go on with it would be to have another exit
// under the name of the old one. It must have been used, and no flow may be open
// that could have kept it alive.
func (ids *identities) idle(b *binding, used bool, now time.Time) (over bool, due time.Time) {
	e, open := b.ep.Load(), ids.r.opt.Open
	if e.IdleLimit == 0 || ids.m.account.Pinned || open == nil {
		return false, time.Time{}
	}
	switch {
	case used:
		b.seen = now
	case b.seen.Before(e.Since): // nobody has used this one yet
		return false, time.Time{}
	}
	due = b.seen.Add(e.IdleLimit)
	if now.Before(due) {
		return false, due
	}
	if open(ids.m.name) {
		b.seen = now
		return false, now.Add(e.IdleLimit)
	}
	return true, time.Time{}
}

// sooner is the earlier of two times, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// bindings are all that are in use.
func (ids *identities) bindings() (all []*binding) {
	switch {
	case ids.scope == Shared:
		all = append(all, &ids.shared)
	case ids.keyed():
		for i := range ids.table {
			for n := ids.table[i].Load(); n != nil; n = n.next {
				all = append(all, n.b)
			}
		}
	}
	return all
}

// batch is a stock of identities for one flow each.
type batch struct {
	stock [batchSize]*Endpoint
	taken atomic.Int64
	next  atomic.Pointer[batch] // made by Run once half of stock is gone
}

const batchSize = 256

func (ids *identities) newBatch() *batch {
	b := new(batch)
	for i := range b.stock {
		b.stock[i] = ids.fresh()
		b.stock[i].OneShot = true
	}
	return b
}

// take hands out an identity. If Run has not kept up, it makes one.
func (ids *identities) take() *Endpoint {
	for {
		b := ids.batch.Load()
		i := b.taken.Add(1) - 1
		if i < batchSize {
			if i == batchSize/2 {
				ids.r.refillSoon()
			}
			return b.stock[i]
		}
		if next := b.next.Load(); next != nil {
			ids.batch.CompareAndSwap(b, next)
			continue
		}
		ids.r.refillSoon()
		e := ids.fresh()
		e.OneShot = true
		return e
	}
}

// refill makes the batch after the one in use, if that is half gone.
func (ids *identities) refill() {
	if ids.scope != PerConnection {
		return
	}
	if b := ids.batch.Load(); b.taken.Load() > batchSize/2 && b.next.Load() == nil {
		b.next.Store(ids.newBatch())
	}
}
