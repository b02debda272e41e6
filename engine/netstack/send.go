package netstack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// bufferHead is the room before a transport header for what send puts there.
const bufferHead = vnetBytes + ipv6Bytes

// send wraps the transport bytes out[bufferHead:] into an IP packet and hands
// it to the kernel, in fragments if it is longer than the MTU. It fills in the
// checksum and uses out[:bufferHead].
func (k *kernel) send(q platform.Queue, out []byte, v6 bool, src, dst addr, proto uint8) {
	if k.sendTogether(q, out, v6, src, dst, proto, 0) != nil {
		k.counters.writeErrors.Add(1)
	}
}

// sendTogether is send for several datagrams of size bytes each (the last may
// be shorter) behind one UDP header; the kernel cuts them. If size is 0, it is
// one packet. An error is not counted.
func (k *kernel) sendTogether(q platform.Queue, out []byte, v6 bool, src, dst addr, proto uint8, size int) error {
	t := out[bufferHead:]
	at := 16 // of the checksum in the header
	s := pseudoSum(src.bytes(v6), dst.bytes(v6), proto, len(t))
	switch proto {
	case protoUDP:
		at = 6
	case protoICMP6:
		at = 2
	case protoICMP:
		at, s = 2, 0
	}
	t[at], t[at+1] = 0, 0
	head := ipHeaderBytes(v6)
	if head+len(t) > k.mtu && size == 0 {
		c := ^sum(t, s)
		if c == 0 && proto == protoUDP {
			c = 0xffff // RFC 768: 0 means no checksum
		}
		binary.BigEndian.PutUint16(t[at:], c)
		return k.sendFragments(q, t, v6, src, dst, proto)
	}
	raw := out[bufferHead-head-vnetBytes:]
	clear(raw[:vnetBytes])
	putIP(raw[vnetBytes:], v6, src, dst, proto, len(t))
	if proto == protoUDP { // the kernel that gets it need not look at the data then
		raw[0] = needsCsum
		binary.NativeEndian.PutUint16(raw[6:], uint16(head))
		binary.NativeEndian.PutUint16(raw[8:], uint16(at))
		binary.BigEndian.PutUint16(t[at:], s)
		if size > 0 {
			raw[1] = gsoUDP
			binary.NativeEndian.PutUint16(raw[2:], uint16(head+udpBytes))
			binary.NativeEndian.PutUint16(raw[4:], uint16(size))
		}
	} else {
		binary.BigEndian.PutUint16(t[at:], ^sum(t, s))
	}
	_, err := q.Write(raw)
	return err
}

// sendFragments sends the transport bytes t, whose checksum is in place, in
// pieces that fit the MTU (RFC 791 section 3.2, RFC 8200 section 4.5).
func (k *kernel) sendFragments(q platform.Queue, t []byte, v6 bool, src, dst addr, proto uint8) error {
	b := k.pool.get(vnetBytes + min(k.mtu, packetBytes))
	defer k.pool.put(b)
	id := k.fragID.Add(1)
	head, next := ipHeaderBytes(v6), proto
	if v6 {
		head, next = head+fragmentHeaderBytes, 44
	}
	step := (k.mtu - head) &^ 7
	for off := 0; off < len(t); off += step {
		piece := t[off:min(off+step, len(t))]
		more := uint16(0)
		if off+len(piece) < len(t) {
			more = 1
		}
		raw := b.all[:vnetBytes+head+len(piece)]
		clear(raw[:vnetBytes])
		ip := raw[vnetBytes:]
		if v6 {
			putIP(ip, true, src, dst, next, fragmentHeaderBytes+len(piece))
			ip[40], ip[41] = proto, 0
			binary.BigEndian.PutUint16(ip[42:], uint16(off)|more)
			binary.BigEndian.PutUint32(ip[44:], id)
		} else {
			putIP(ip, false, src, dst, next, len(piece))
			binary.BigEndian.PutUint16(ip[4:], uint16(id))
			binary.BigEndian.PutUint16(ip[6:], more<<13|uint16(off/8))
			ip[10], ip[11] = 0, 0
			binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:ipv4Bytes], 0))
		}
		copy(ip[head:], piece)
		if _, err := q.Write(raw); err != nil {
			return err // the rest is of no use
		}
	}
	return nil
}

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
