package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	firstPeerPort = 4096
	maxFlows      = 1<<16 - firstPeerPort // TCP flows per family
	reuseAfter    = 4096                  // slots that rest before one is used again
)

// family is what the kernel path has per IP version: the listener that
// translated connections reach, and the peer addresses they seem to come from.
//
// A flow has a slot: its peer port is firstPeerPort+slot, so a packet coming
// back finds its flow by index. The peer address steps on with every use of a
// slot, so that a port number returns only after the kernel has forgotten the
// connection that had it.
type family struct {
	v6       bool
	tun      addr         // the device's own address
	prefix   netip.Prefix // on-link
	last     netip.Addr   // IPv4: the broadcast address of prefix
	peer0    addr         // first peer address; the last byte(s) count on from it
	peers    uint16       // number of peer addresses
	listener *net.TCPListener
	port     uint16 // of listener

	slots [maxFlows]atomic.Pointer[tcpFlow]

	mu     sync.Mutex
	uses   [maxFlows]uint16 // guarded by mu
	fresh  int              // guarded by mu; slots from here on were never used
	free   fifo[uint16]     // guarded by mu
	closed fifo[*tcpFlow]   // guarded by mu; in TIME_WAIT, oldest first
}

// newFamily makes a family that has no listener yet.
func newFamily(prefix netip.Prefix) (*family, error) {
	ip := prefix.Addr()
	f := &family{v6: ip.Is6(), tun: addrOf(ip), prefix: prefix.Masked(), peer0: addrOf(prefix.Masked().Addr())}
	limit := 24
	if f.v6 {
		limit, f.peers = 116, 0x1000-0x100
		f.peer0[14] |= 0x01
	} else {
		f.peers = 256 - 16
		f.peer0[15] |= 16
		b := addrOf(prefix.Masked().Addr())
		for i := prefix.Bits(); i < 32; i++ {
			b[12+i/8] |= 0x80 >> (i % 8)
		}
		f.last = b.netip()
	}
	if prefix.Bits() > limit {
		return nil, fmt.Errorf("tun prefix %v is too small: want /%d or shorter", prefix, limit)
	}
	return f, nil
}

// listen opens the listener that translated connections reach; device is the
// TUN's name.
func (f *family) listen(device string) error {
	lc := net.ListenConfig{Control: listenerOptions(device), KeepAlive: -1} // accepted connections inherit it
	lc.SetMultipathTCP(false)                                               // Go's default; such a socket does not splice
	network := "tcp4"
	if f.v6 {
		network = "tcp6"
	}
	l, err := lc.Listen(context.Background(), network, net.JoinHostPort(f.tun.netip().String(), "0"))
	if err != nil {
		return fmt.Errorf("listen for translated connections: %w", err)
	}
	f.listener = l.(*net.TCPListener)
	f.port = uint16(f.listener.Addr().(*net.TCPAddr).Port)
	return nil
}

// carries reports whether a packet may pass at all. What it refuses is dropped
// without an answer: multicast and broadcast, packets to or from ourselves,
// packets at the end of their life.
func (f *family) carries(p *packet) bool {
	src, dst := p.src.netip(), p.dst.netip()
	switch {
	case p.ttl <= 1, p.src == p.dst,
		src.IsUnspecified(), src.IsMulticast(), src.IsLoopback(),
		dst.IsUnspecified(), dst.IsMulticast(), dst.IsLoopback(),
		p.dst == f.tun, f.isPeer(p.src):
		return false
	case f.isPeer(p.dst):
		return p.src == f.tun && p.proto == protoTCP && !p.fragment
	case p.v6:
		return !dst.IsLinkLocalUnicast()
	}
	b := p.dst[12:]
	return b[0] != 0 && b[0] < 240 && dst != f.last && dst != f.prefix.Addr() && p.src[12] < 224
}

func (f *family) isPeer(a addr) bool {
	_, ok := f.peerIndex(a)
	return ok
}

// peerIndex is the number of peer address a.
func (f *family) peerIndex(a addr) (uint16, bool) {
	n := uint16(a[14])<<8 | uint16(a[15])
	first := uint16(f.peer0[14])<<8 | uint16(f.peer0[15])
	if [14]byte(a[:14]) != [14]byte(f.peer0[:14]) || n < first || n-first >= f.peers {
		return 0, false
	}
	return n - first, true
}

func (f *family) peer(i uint16) addr {
	a := f.peer0
	n := uint16(a[14])<<8 + uint16(a[15]) + i
	a[14], a[15] = byte(n>>8), byte(n)
	return a
}

// byPeer finds the flow that has peer address a and port, or nil.
func (f *family) byPeer(a addr, port uint16) *tcpFlow {
	if port < firstPeerPort {
		return nil
	}
	t := f.slots[port-firstPeerPort].Load()
	if t == nil || t.out.src != a {
		return nil
	}
	return t
}

// take finds a slot for a new flow and the peer address to use. If all are
// taken, the flow that has been in TIME_WAIT longest has to leave: it is given
// to evict. It reports false if there is none.
func (f *family) take(evict func(*tcpFlow)) (slot uint16, peer addr, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.free.len() >= reuseAfter || f.fresh == maxFlows && f.free.len() > 0:
		slot = f.free.pop()
	case f.fresh < maxFlows:
		slot = uint16(f.fresh)
		f.fresh++
	default:
		old := f.oldestClosed()
		if old == nil {
			return 0, addr{}, false
		}
		f.closed.pop()
		old.gone = true
		evict(old)
		slot = old.slot
	}
	f.uses[slot]++
	return slot, f.peer(f.uses[slot] % f.peers), true
}

// oldestClosed is the head of closed that still has its slot, or nil. The
// caller holds mu.
func (f *family) oldestClosed() *tcpFlow {
	for f.closed.len() > 0 {
		if t := f.closed.peek(); !t.gone {
			return t
		}
		f.closed.pop()
	}
	return nil
}

// release gives a flow's slot back. It may be called more than once.
func (f *family) release(t *tcpFlow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.gone {
		return
	}
	t.gone = true
	f.slots[t.slot].Store(nil)
	f.free.push(t.slot)
}

// fifo is a queue that reuses its memory.
type fifo[T any] struct {
	items []T
	head  int
}

func (q *fifo[T]) len() int { return len(q.items) - q.head }

func (q *fifo[T]) push(v T) {
	if q.head > len(q.items)/2 && q.head > 64 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *fifo[T]) pop() T {
	v := q.items[q.head]
	var zero T
	q.items[q.head] = zero
	q.head++
	return v
}

func (q *fifo[T]) peek() T { return q.items[q.head] }
