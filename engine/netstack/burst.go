package netstack

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	burstPackets = 64                   // read before what is held goes on at the latest
	burstBytes   = 96<<10 + bufferBytes // of a queue's buffer: the longest packet fits behind what is held
	gsoUDP       = 5                    // VIRTIO_NET_HDR_GSO_UDP_L4: datagrams of one size in one packet
	maxTogether  = 64                   // of them (UDP_MAX_SEGMENTS; newer kernels take 128)
)

// burst is what one queue gives in one go. Datagrams are held until the queue
// is empty, so that each session gets its own together; all else is dealt with
// on the spot. While single datagrams come, none is held.
type burst struct {
	queue platform.Queue
	held  []heldDatagram
	ms    []flow.Datagram // of one session, for flush
	count int             // datagrams since the queue was empty
	busy  bool            // there were several the last time
}

// heldDatagram is one that lies in the queue's buffer.
type heldDatagram struct {
	s *udpSession // nil once it has gone on
	m flow.Datagram
}

// hold adds a datagram, whose bytes stay as they are until flush.
func (b *burst) hold(s *udpSession, m flow.Datagram) {
	b.held = append(b.held, heldDatagram{s, m})
	b.count++
}

// flush gives every session its datagrams, in the order they came.
func (b *burst) flush() {
	for i := range b.held {
		s := b.held[i].s
		if s == nil {
			continue
		}
		b.ms = b.ms[:0]
		for j := i; j < len(b.held); j++ {
			if h := &b.held[j]; h.s == s {
				b.ms = append(b.ms, h.m)
				h.s = nil
			}
		}
		s.offer(b.ms)
	}
	b.held = b.held[:0]
}

// empty is told that the queue has no more packets.
func (b *burst) empty() {
	b.flush()
	b.busy, b.count = b.count > 1, 0
}

// read carries the packets of one queue until the device closes.
func (k *kernel) read(ctx context.Context, q platform.Queue) error {
	b, buf := &burst{queue: q}, make([]byte, burstBytes)
	var err error
	if quiet, ok := q.(*quietQueue); ok {
		err = quiet.drain(buf, func(p []byte) (holds bool) {
			k.take(ctx, b, p)
			if !b.busy && b.count == 1 {
				b.flush()
			}
			return len(b.held) > 0
		}, b.flush, b.empty)
	}
	for n := 0; err == nil; {
		if n, err = q.Read(buf); err == nil {
			k.packet(ctx, q, buf[:n])
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("read tun queue: %w", err)
}

// packet deals with a single packet, raw with its virtio_net_hdr. It may change
// raw but does not keep it.
func (k *kernel) packet(ctx context.Context, q platform.Queue, raw []byte) {
	b, ok := k.bursts.Get().(*burst)
	if !ok {
		b = new(burst)
	}
	b.queue = q
	k.take(ctx, b, raw)
	b.flush()
	k.bursts.Put(b)
}

// datagramBytes is the size of the datagrams in p, all but the last: the kernel
// leaves it to us to cut what an app has sent in one go (UDP_SEGMENT).
func (p *packet) datagramBytes() int {
	if p.raw[1] != gsoUDP {
		return packetBytes
	}
	return max(int(binary.NativeEndian.Uint16(p.raw[4:])), 1)
}
