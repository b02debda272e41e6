package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxTTL         = time.Hour
	maxNegativeTTL = 5 * time.Minute // RFC 2308 section 5 allows hours
)

// cache keeps answers for their TTL, within cacheBytes, and lets equal
// questions that come together wait for one exchange.
type cache struct {
	mu    sync.RWMutex
	known map[cacheKey]*cached
	bytes int
	asked map[cacheKey]*call
}

type cacheKey struct {
	name      string
	qtype     uint16
	do, cd    bool
	localZone bool
}

// cached is an answer; it is not changed once it is stored.
type cached struct {
	name    string // canonical, of the question
	packed  []byte // without OPT, its names not compressed
	size    int    // of packed, as dns.Msg counts it
	records int    // where the records begin in packed
	ttls    []uint16
	addrs   []cachedAddr // that the question's name leads to
	stored  time.Time
	expires time.Time
}

type cachedAddr struct {
	addr netip.Addr
	ttl  uint32 // seconds, when stored
}

// call is an exchange under way; r and err are set before done is closed.
type call struct {
	done chan struct{}
	r    []byte
	err  error
}

func newCache() *cache {
	return &cache{known: map[cacheKey]*cached{}, asked: map[cacheKey]*call{}}
}

// get returns the answer from the cache, from a call under way, or from ask.
// The answer is the caller's own.
func (c *cache) get(ctx context.Context, q *request, ask func(context.Context) (*dns.Msg, error)) (*dns.Msg, error) {
	opt := q.msg.IsEdns0()
	key := cacheKey{canonical(q.msg.Question[0].Name), q.msg.Question[0].Qtype, opt != nil && opt.Do(), q.msg.CheckingDisabled, q.local}
	for {
		c.mu.Lock()
		if e, ok := c.known[key]; ok {
			if now := time.Now(); now.Before(e.expires) {
				c.mu.Unlock()
				return unpack(e.packed, now.Sub(e.stored))
			}
			c.drop(key)
		}
		other, ok := c.asked[key]
		if !ok {
			break
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-other.done:
		}
		if other.err == nil {
			return unpack(other.r, 0)
		}
		if !errors.Is(other.err, context.Canceled) {
			return nil, other.err
		}
		// Who asked has gone away: ask ourselves.
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	mine := &call{done: make(chan struct{})}
	c.asked[key] = mine
	c.mu.Unlock()

	r, err := ask(ctx)
	var e *cached
	if err == nil {
		e, err = newCached(key.name, r)
	}
	if mine.err = err; err != nil && ctx.Err() != nil {
		mine.err = ctx.Err()
	}
	c.mu.Lock()
	if err == nil {
		mine.r = e.packed
	}
	if c.asked[key] == mine { // otherwise the network has changed meanwhile
		delete(c.asked, key)
		if err == nil {
			c.store(key, e, lifetime(r))
		}
	}
	c.mu.Unlock()
	close(mine.done)
	return r, err
}

// newCached packs r, less its OPT, in the form that quick can use.
func newCached(name string, r *dns.Msg) (*cached, error) {
	r.Extra = withoutOPT(r.Extra)
	packed, err := r.Pack()
	if err != nil {
		return nil, err
	}
	e := &cached{name: name, packed: packed, size: r.Len()}
	off := headBytes
	for range r.Question {
		off = skipName(packed, off) + 4
	}
	e.records = off
	for range len(r.Answer) + len(r.Ns) + len(r.Extra) {
		off = skipName(packed, off) + 4
		e.ttls = append(e.ttls, uint16(off))
		off += 6 + int(binary.BigEndian.Uint16(packed[off+4:]))
	}
	if isHostName(name) {
		for _, rr := range r.Answer {
			if a, ok := addrOf(rr); ok {
				e.addrs = append(e.addrs, cachedAddr{a, rr.Header().Ttl})
			}
		}
	}
	return e, nil
}

// skipName returns where the name at off, which is not compressed, ends.
func skipName(packed []byte, off int) int {
	for packed[off] != 0 {
		off += 1 + int(packed[off])
	}
	return off + 1
}

// quick returns what is known, and its age in seconds; nil if nothing is. It
// does not allocate.
func (c *cache) quick(q *question, now time.Time) (e *cached, age uint32) {
	c.mu.RLock()
	e = c.known[cacheKey{string(q.canonical()), q.qtype, q.do, q.cd, false}]
	if e == nil { // a question is about a local name or not: one of the two at most is there
		e = c.known[cacheKey{string(q.canonical()), q.qtype, q.do, q.cd, true}]
	}
	c.mu.RUnlock()
	if e == nil || !now.Before(e.expires) {
		return nil, 0
	}
	return e, uint32(now.Sub(e.stored) / time.Second)
}

// store keeps an answer; the caller holds mu.
func (c *cache) store(key cacheKey, e *cached, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	c.drop(key)
	for k := range c.known { // any one: which does not matter much at this size
		if c.bytes+e.cost() <= cacheBytes {
			break
		}
		c.drop(k)
	}
	e.stored = time.Now()
	e.expires = e.stored.Add(ttl)
	c.known[key] = e
	c.bytes += e.cost()
}

// cost is what an entry takes of cacheBytes.
func (e *cached) cost() int {
	return len(e.packed) + 2*len(e.ttls) + 32*len(e.addrs) + cacheOverhead
}

// cacheOverhead is what an entry costs beside its message: key, map, struct.
const cacheOverhead = 320

func (c *cache) drop(key cacheKey) {
	if e, ok := c.known[key]; ok {
		c.bytes -= e.cost()
		delete(c.known, key)
	}
}

// clear forgets all answers, those that are still under way as well.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.known)
	clear(c.asked)
	c.bytes = 0
}

// lifetime is how long an answer may be kept: the least TTL, or for a negative
// one what its SOA says (RFC 2308 section 5). 0 means not at all.
func lifetime(r *dns.Msg) time.Duration {
	if r.Truncated {
		return 0
	}
	if r.Rcode == dns.RcodeSuccess && len(r.Answer) > 0 {
		ttl := maxTTL
		for _, rr := range r.Answer {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		return ttl
	}
	for _, rr := range r.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(maxNegativeTTL, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return 0
}

// unpack returns a fresh copy, its TTLs lowered by age.
func unpack(packed []byte, age time.Duration) (*dns.Msg, error) {
	r := new(dns.Msg)
	if err := r.Unpack(packed); err != nil {
		return nil, err
	}
	for _, section := range [][]dns.RR{r.Answer, r.Ns, r.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, uint32(age/time.Second))
			}
		}
	}
	return r, nil
}
