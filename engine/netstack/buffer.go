package netstack

import (
	"sync"
	"sync/atomic"
)

// smallBuffer holds what a path MTU of 1500 lets through, with headers.
const smallBuffer = 2048

// packetBuffer is pooled memory for one packet or datagram.
type packetBuffer struct {
	all    []byte
	off, n int // what is in use: all[off:off+n]

	// Where a datagram in a session's queue is to go.
	dst   addr
	dport uint16
}

func (b *packetBuffer) data() []byte { return b.all[b.off : b.off+b.n] }

// pools hold buffers of two sizes.
type pools struct{ small, large sync.Pool }

// get returns a buffer of n bytes of unknown content; n is at most that of
// the longest packet.
func (p *pools) get(n int) *packetBuffer {
	pool, size := &p.small, smallBuffer
	if n > smallBuffer {
		pool, size = &p.large, bufferHead+packetBytes
	}
	b, ok := pool.Get().(*packetBuffer)
	if !ok {
		b = &packetBuffer{all: make([]byte, size)}
	}
	b.off, b.n = 0, n
	return b
}

func (p *pools) put(b *packetBuffer) {
	if len(b.all) == smallBuffer {
		p.small.Put(b)
	} else {
		p.large.Put(b)
	}
}

// budget is a bounded number of bytes.
type budget struct {
	used atomic.Int64
	max  int64
}

// take reports false, and takes nothing, if that would exceed the bound.
func (b *budget) take(n int) bool {
	if b.used.Add(int64(n)) > b.max {
		b.used.Add(-int64(n))
		return false
	}
	return true
}

func (b *budget) give(n int) { b.used.Add(-int64(n)) }
