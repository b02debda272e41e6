package netstack

import (
	"slices"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	maxReassemblies = 64 // each holds one 64 KiB buffer: 4 MiB in all
	maxFragments    = 128
)

// fragKey names the packet that a fragment is a piece of: RFC 791 section 3.2,
// RFC 8200 section 4.5 (without the protocol there).
type fragKey struct {
	src, dst addr
	id       uint32
	proto    uint8
}

// reassembler puts fragmented packets together (RFC 815, simplified: a sorted
// list of what has come). Overlapping fragments are an attack and discard the
// whole packet (RFC 5722), exact repetitions are ignored.
type reassembler struct {
	pool *pools
	mu   sync.Mutex
	m    map[fragKey]*partial // guarded by mu
}

type partial struct {
	buf   *packetBuffer // data at bufferHead; nil after an overlap
	spans []span        // sorted, disjoint
	total int           // bytes of the whole; 0 until the last fragment has come
	proto uint8
	since time.Duration
}

type span struct{ from, to int }

// add takes a fragment. If it completes a packet, that is returned, with an
// empty virtio_net_hdr, and belongs to the caller.
func (r *reassembler) add(p *packet, now time.Duration) *packetBuffer {
	data := p.transport()
	s := span{p.fragOff, p.fragOff + len(data)}
	if len(data) == 0 || p.more && len(data)%8 != 0 || s.to > maxTransport(p.v6) {
		return nil
	}
	key := fragKey{src: p.src, dst: p.dst, id: p.fragID}
	if !p.v6 {
		key.proto = p.proto
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	part := r.m[key]
	if part == nil {
		part = r.open(key, now)
	}
	if part.buf == nil || slices.Contains(part.spans, s) {
		return nil
	}
	at, ok := part.fits(s, p.more)
	if !ok {
		r.poison(part)
		return nil
	}
	part.spans = slices.Insert(part.spans, at, s)
	copy(part.buf.all[bufferHead+s.from:], data)
	if s.from == 0 {
		part.proto = p.proto // RFC 8200: that of the first fragment counts
	}
	if !p.more {
		part.total = s.to
	}
	if !part.complete() {
		return nil
	}
	delete(r.m, key)
	b := part.buf
	head := ipHeaderBytes(p.v6)
	b.off, b.n = bufferHead-head-vnetBytes, vnetBytes+head+part.total
	clear(b.data()[:vnetBytes])
	putIP(b.data()[vnetBytes:], p.v6, p.src, p.dst, part.proto, part.total)
	return b
}

// open makes room for another packet; the oldest leaves if there is none.
func (r *reassembler) open(key fragKey, now time.Duration) *partial {
	if r.m == nil {
		r.m = make(map[fragKey]*partial)
	}
	if len(r.m) >= maxReassemblies {
		var oldest fragKey
		age := time.Duration(-1)
		for k, part := range r.m {
			if now-part.since > age {
				oldest, age = k, now-part.since
			}
		}
		r.poison(r.m[oldest])
		delete(r.m, oldest)
	}
	part := &partial{buf: r.pool.get(bufferBytes), since: now}
	r.m[key] = part
	return part
}

// fits finds where s belongs in spans. It reports false if s cannot be a piece
// of the same packet as the others.
func (p *partial) fits(s span, more bool) (at int, ok bool) {
	at, _ = slices.BinarySearchFunc(p.spans, s, func(a, b span) int { return a.from - b.from })
	end := 0
	if n := len(p.spans); n > 0 {
		end = p.spans[n-1].to
	}
	switch {
	case len(p.spans) >= maxFragments,
		at > 0 && p.spans[at-1].to > s.from,
		at < len(p.spans) && p.spans[at].from < s.to,
		p.total > 0 && s.to > p.total,
		!more && (p.total > 0 || end > s.to):
		return 0, false
	}
	return at, true
}

func (p *partial) complete() bool {
	if p.total == 0 {
		return false
	}
	end := 0
	for _, s := range p.spans {
		if s.from != end {
			return false
		}
		end = s.to
	}
	return end == p.total
}

// poison discards a packet, and its fragments that are still to come.
func (r *reassembler) poison(p *partial) {
	if p.buf != nil {
		r.pool.put(p.buf)
	}
	p.buf, p.spans = nil, nil
}

// expire forgets packets that did not become whole in time.
func (r *reassembler) expire(now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, part := range r.m {
		if now-part.since > flow.ReassembleWithin {
			r.poison(part)
			delete(r.m, key)
		}
	}
}
