package dns

import (
	"context"
	"errors"
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
	mu    sync.Mutex
	known map[cacheKey]cached
	bytes int
	asked map[cacheKey]*call
}

type cacheKey struct {
	name      string
	qtype     uint16
	do, cd    bool
	localZone bool
}

type cached struct {
	packed  []byte
	stored  time.Time
	expires time.Time
}

// call is an exchange under way; r and err are set before done is closed.
type call struct {
	done chan struct{}
	r    []byte
	err  error
}

func newCache() *cache {
	return &cache{known: map[cacheKey]cached{}, asked: map[cacheKey]*call{}}
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
	if err == nil {
		mine.r, err = r.Pack()
	}
	if mine.err = err; err != nil && ctx.Err() != nil {
		mine.err = ctx.Err()
	}
	c.mu.Lock()
	delete(c.asked, key)
	if err == nil {
		c.store(key, mine.r, lifetime(r))
	}
	c.mu.Unlock()
	close(mine.done)
	return r, err
}

// store keeps an answer; the caller holds mu.
func (c *cache) store(key cacheKey, packed []byte, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	c.drop(key)
	now := time.Now()
	for k := range c.known { // any one: which does not matter much at this size
		if c.bytes+len(packed)+cacheOverhead <= cacheBytes {
			break
		}
		c.drop(k)
	}
	c.known[key] = cached{packed, now, now.Add(ttl)}
	c.bytes += len(packed) + cacheOverhead
}

// cacheOverhead is what an entry costs beside its message: key, map, slice.
const cacheOverhead = 256

func (c *cache) drop(key cacheKey) {
	if e, ok := c.known[key]; ok {
		c.bytes -= len(e.packed) + cacheOverhead
		delete(c.known, key)
	}
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
