package netstack

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	maxUDPSessions = 8192
	evictAtOnce    = maxUDPSessions / 16 // the longest idle ones go together: finding them costs a scan
	maxUDPHandlers = maxUDPSessions + maxUDPSessions/2
	idleUDP        = 60 * time.Second
	idleDNS        = 10 * time.Second // nothing but port 53 was asked
	queueDatagrams = 256              // per session, towards the handler
	queueBytes     = 32 << 20         // all sessions together
)

// udpSession carries the datagrams of one app socket, whatever their
// destination (endpoint-independent mapping, RFC 4787 section 4.1). It is the
// net.PacketConn that the handler gets. All methods may be called from any
// goroutine.
type udpSession struct {
	k     *kernel
	key   tuple // without destination
	app   netip.AddrPort
	queue platform.Queue // for what goes to the app

	seen  atomic.Int64 // last datagram either way, time since kernel.start
	other atomic.Bool  // some destination was not port 53

	mu     sync.Mutex
	in     fifo[*packetBuffer] // guarded by mu
	closed bool                // guarded by mu
	peer   *net.UDPAddr        // guarded by mu; the last destination handed out

	ready chan struct{} // has a token while in may hold datagrams
	done  chan struct{} // closed by Close
	read  deadline
}

var (
	_ net.PacketConn  = (*udpSession)(nil)
	_ flow.Refuser    = (*udpSession)(nil)
	_ flow.ReadWaiter = (*udpSession)(nil)
)

// packetUDP gives a datagram to its session, which it opens if there is none.
func (k *kernel) packetUDP(ctx context.Context, q platform.Queue, p *packet) {
	t := p.transport()
	n := int(binary.BigEndian.Uint16(t[4:]))
	if n < udpBytes || n > len(t) {
		k.counters.malformed.Add(1)
		return
	}
	p.cut(p.l4 + n)
	t = t[:n]
	to := p.tuple()
	noSum := t[6] == 0 && t[7] == 0 && !p.v6
	if to.sport == 0 || to.dport == 0 || !p.trusted() && !noSum && !p.checksumOK() {
		k.counters.malformed.Add(1)
		return
	}
	key := tuple{src: to.src, sport: to.sport}
	s := k.udp.get(&key)
	if s == nil {
		if s = k.openUDP(ctx, q, key, to); s == nil {
			k.counters.udpDropped.Add(1)
			return
		}
	}
	s.put(t[udpBytes:], to)
}

// openUDP makes the session of an app socket and starts its handler. It returns
// nil if there are too many handlers, or if the stack is ending.
func (k *kernel) openUDP(ctx context.Context, q platform.Queue, key, to tuple) *udpSession {
	if k.udp.count.Load() >= maxUDPSessions {
		k.evictUDP()
	}
	if k.udpHandlers.Load() >= maxUDPHandlers {
		return nil
	}
	s, made := k.udp.getOrPut(key, func() *udpSession {
		s := &udpSession{k: k, key: key, app: to.srcAddrPort(), queue: q,
			ready: make(chan struct{}, 1), done: make(chan struct{})}
		s.read.past = make(chan struct{})
		s.seen.Store(int64(k.now()))
		return s
	})
	if !made {
		return s
	}
	k.udpHandlers.Add(1)
	ok := k.spawn(func() {
		defer k.udpHandlers.Add(-1)
		defer s.Close()
		k.handler.HandlePackets(ctx, flow.Flow{
			ID: flow.NextID(), Network: flow.UDP, Inbound: flow.TUN,
			Src: s.app, Dst: to.dstAddrPort(),
			Target: flow.TargetOf(to.dstAddrPort()), Start: time.Now(),
		}, s)
	})
	if !ok {
		k.udpHandlers.Add(-1)
		s.Close()
		return nil
	}
	return s
}

// put queues a datagram for the handler, or drops and counts it.
func (s *udpSession) put(data []byte, to tuple) {
	s.seen.Store(int64(s.k.now()))
	if to.dport != 53 && !s.other.Load() {
		s.other.Store(true)
	}
	b := s.k.pool.get(len(data))
	copy(b.all, data)
	b.dst, b.dport = to.dst, to.dport
	s.mu.Lock()
	ok := !s.closed && s.in.len() < queueDatagrams && s.k.queued.take(len(b.all))
	if ok {
		s.in.push(b)
	}
	s.mu.Unlock()
	if !ok {
		s.k.counters.udpDropped.Add(1)
		s.k.pool.put(b)
		return
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// ReadFrom implements net.PacketConn: one datagram of the app and where it is
// to go. The address (*net.UDPAddr) is for reading only.
func (s *udpSession) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if expired(s.read.wait()) {
			return 0, nil, os.ErrDeadlineExceeded
		}
		n, to, err := s.next(p)
		if err != nil || to != nil {
			return n, to, err
		}
		if err := s.WaitRead(); err != nil {
			return 0, nil, err
		}
	}
}

// WaitRead implements flow.ReadWaiter.
func (s *udpSession) WaitRead() error {
	for {
		if expired(s.read.wait()) {
			return os.ErrDeadlineExceeded
		}
		s.mu.Lock()
		closed, some := s.closed, s.in.len() > 0
		s.mu.Unlock()
		switch {
		case closed:
			return net.ErrClosed
		case some:
			return nil
		}
		select {
		case <-s.ready:
		case <-s.done:
		case <-s.read.wait():
		}
	}
}

// next takes a datagram from the queue; the address is nil if there is none.
func (s *udpSession) next(p []byte) (int, net.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, nil, net.ErrClosed
	}
	if s.in.len() == 0 {
		return 0, nil, nil
	}
	b := s.in.pop()
	s.k.queued.give(len(b.all))
	n := copy(p, b.data())
	to := netip.AddrPortFrom(b.dst.netip(), b.dport)
	s.k.pool.put(b)
	if s.peer == nil || flow.AddrPortOf(s.peer) != to {
		s.peer = flow.UDPAddrOf(to)
	}
	if s.in.len() > 0 { // another reader may be waiting
		select {
		case s.ready <- struct{}{}:
		default:
		}
	}
	return n, s.peer, nil
}

// WriteTo implements net.PacketConn: a datagram to the app that seems to come
// from the address given. It does not block.
func (s *udpSession) WriteTo(p []byte, from net.Addr) (int, error) {
	src := flow.AddrPortOf(from)
	if !src.IsValid() || src.Addr().Is4() != s.app.Addr().Is4() {
		return 0, fmt.Errorf("datagram from %v to an app at %v: %w", from, s.app, errFamily)
	}
	if expired(s.done) {
		return 0, net.ErrClosed
	}
	s.seen.Store(int64(s.k.now()))
	if ipv4Bytes+udpBytes+len(p) > math.MaxUint16 {
		return 0, fmt.Errorf("datagram of %d bytes: %w", len(p), errTooLong)
	}
	b := s.k.pool.get(bufferHead + udpBytes + len(p))
	defer s.k.pool.put(b)
	t := b.all[bufferHead:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], s.app.Port())
	binary.BigEndian.PutUint16(t[4:], uint16(udpBytes+len(p)))
	copy(t[udpBytes:], p)
	s.k.send(s.queue, b.data(), s.app.Addr().Is6(), addrOf(src.Addr()), s.key.src, protoUDP)
	return len(p), nil
}

var (
	errFamily  = errors.New("not an address of the same family")
	errTooLong = errors.New("longer than a datagram can be")
)

// Refuse implements flow.Refuser.
func (s *udpSession) Refuse(dst netip.AddrPort) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	if dst.IsValid() && dst.Addr().Is4() == s.app.Addr().Is4() {
		s.k.counters.refused.Add(1)
		s.k.refuseUDP(s.queue, s.app, dst)
	}
}

// Close implements net.PacketConn. Datagrams not yet read are dropped.
func (s *udpSession) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for s.in.len() > 0 {
		b := s.in.pop()
		s.k.queued.give(len(b.all))
		s.k.counters.udpDropped.Add(1)
		s.k.pool.put(b)
	}
	s.mu.Unlock()
	close(s.done)
	s.k.udp.remove(s.key, s)
	return nil
}

// LocalAddr implements net.PacketConn; it is the app's socket.
func (s *udpSession) LocalAddr() net.Addr { return flow.UDPAddrOf(s.app) }

func (s *udpSession) SetReadDeadline(t time.Time) error { s.read.set(t); return nil }
func (s *udpSession) SetDeadline(t time.Time) error     { s.read.set(t); return nil }

// SetWriteDeadline does nothing: WriteTo does not block.
func (s *udpSession) SetWriteDeadline(time.Time) error { return nil }

// expireUDP ends sessions that have gone silent.
func (k *kernel) expireUDP(now time.Duration) {
	if k.udp.count.Load() == 0 {
		return
	}
	k.udp.each(func(_ tuple, s *udpSession) {
		limit := idleDNS
		if s.other.Load() {
			limit = idleUDP
		}
		if now-time.Duration(s.seen.Load()) > limit {
			s.Close()
		}
	})
}

// evictUDP ends the sessions that have been silent longest, to make room.
func (k *kernel) evictUDP() {
	k.evicting.Lock()
	defer k.evicting.Unlock()
	if k.udp.count.Load() < maxUDPSessions {
		return // the other queue has made room
	}
	type aged struct {
		s    *udpSession
		seen int64
	}
	all := make([]aged, 0, maxUDPSessions)
	k.udp.each(func(_ tuple, s *udpSession) { all = append(all, aged{s, s.seen.Load()}) })
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(a.seen, b.seen) })
	for _, a := range all[:min(evictAtOnce, len(all))] {
		k.counters.udpEvicted.Add(1)
		a.s.Close()
	}
}

// deadline is a point in time that may be moved while somebody waits for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer   // guarded by mu; nil if no time is set
	past  chan struct{} // guarded by mu; closed when the time has come
}

// set moves the deadline to t; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.past // the timer's function is about to close it
	}
	d.timer = nil
	if expired(d.past) {
		d.past = make(chan struct{})
	}
	past := d.past
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait <= 0:
		close(past)
	default:
		d.timer = time.AfterFunc(wait, func() { close(past) })
	}
}

// wait is closed when the deadline has come. After set it may be another one.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past
}

func expired(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
