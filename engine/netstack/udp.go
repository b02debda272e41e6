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
	queueDatagrams = 256      // per session, towards the handler
	queueBytes     = 32 << 20 // all sessions together
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

	seen  atomic.Int64                              // last datagram either way, time since kernel.start
	other atomic.Bool                               // some destination was not port 53
	push  atomic.Pointer[func([]flow.Datagram) int] // what the handler gave to Push

	mu     sync.Mutex
	in     fifo[*packetBuffer] // guarded by mu
	closed bool                // guarded by mu
	peer   *net.UDPAddr        // guarded by mu; the last destination handed out

	ready chan struct{} // has a token while in may hold datagrams
	done  chan struct{} // closed by Close
	read  deadline
}

var (
	_ net.PacketConn   = (*udpSession)(nil)
	_ flow.Refuser     = (*udpSession)(nil)
	_ flow.ReadWaiter  = (*udpSession)(nil)
	_ flow.Pusher      = (*udpSession)(nil)
	_ flow.BatchSender = (*udpSession)(nil)
)

// packetUDP holds a datagram, or several that the kernel has left together, for
// its session, which it opens if there is none.
func (k *kernel) packetUDP(ctx context.Context, b *burst, p *packet) {
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
		s = k.openUDP(ctx, b.queue, key, to)
	}
	m := flow.Datagram{Addr: to.dstAddrPort()}
	size, data := p.datagramBytes(), t[udpBytes:]
	for first := true; first || len(data) > 0; first = false {
		n := min(size, len(data))
		m.Data, data = data[:n], data[n:]
		if s == nil {
			k.counters.udpDropped.Add(1)
		} else {
			b.hold(s, m)
		}
	}
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

// Push implements flow.Pusher.
func (s *udpSession) Push(f func([]flow.Datagram) int) {
	if f == nil {
		s.push.Store(nil)
		return
	}
	s.push.Store(&f)
}

// offer gives datagrams to the handler: what it does not deal with at once is
// queued, or dropped and counted.
func (s *udpSession) offer(ms []flow.Datagram) {
	s.seen.Store(int64(s.k.now()))
	if !s.other.Load() && slices.ContainsFunc(ms, func(m flow.Datagram) bool { return m.Addr.Port() != 53 }) {
		s.other.Store(true)
	}
	done := 0
	if f := s.push.Load(); f != nil && s.drained() {
		done = (*f)(ms)
	}
	for i := done; i < len(ms); i++ {
		s.put(&ms[i])
	}
}

// drained reports whether the handler has read all there was.
func (s *udpSession) drained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.len() == 0
}

// put queues a datagram for the handler, or drops and counts it.
func (s *udpSession) put(m *flow.Datagram) {
	b := s.k.pool.get(len(m.Data))
	copy(b.all, m.Data)
	b.dst, b.dport = addrOf(m.Addr.Addr()), m.Addr.Port()
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
	ms := [1]flow.Datagram{{Data: p, Addr: flow.AddrPortOf(from)}}
	if err := s.reply(ms[:]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Send implements flow.BatchSender: WriteTo for several, none of which is left.
func (s *udpSession) Send(ms []flow.Datagram) (done, lost int, err error) {
	for done < len(ms) {
		n := s.together(ms[done:])
		e := s.reply(ms[done : done+n])
		switch {
		case e != nil && n > 1: // a kernel before 6.2
			s.k.cutUDP.Store(true)
			continue
		case e != nil:
			lost, err = lost+1, e
		}
		done += n
	}
	return done, lost, err
}

// together is how many of ms, from the first, one packet can hold: datagrams of
// one source and size, but for the last, which may be shorter.
func (s *udpSession) together(ms []flow.Datagram) int {
	size := len(ms[0].Data)
	head := ipHeaderBytes(s.app.Addr().Is6()) + udpBytes
	if size == 0 || head+size > s.k.mtu || s.k.cutUDP.Load() {
		return 1
	}
	n, total := 1, head+size
	for n < len(ms) && n < maxTogether && ms[n].Addr == ms[0].Addr {
		next := len(ms[n].Data)
		if next == 0 || next > size || total+next > math.MaxUint16 {
			break
		}
		n, total = n+1, total+next
		if next < size {
			break
		}
	}
	return n
}

// reply sends the app one packet with datagrams of one source and size.
func (s *udpSession) reply(ms []flow.Datagram) error {
	src := ms[0].Addr
	if !src.IsValid() || src.Addr().Is4() != s.app.Addr().Is4() {
		return fmt.Errorf("datagram from %v to an app at %v: %w", src, s.app, errFamily)
	}
	if expired(s.done) {
		return net.ErrClosed
	}
	s.seen.Store(int64(s.k.now()))
	total, size := 0, 0
	for i := range ms {
		total += len(ms[i].Data)
	}
	if len(ms) > 1 {
		size = len(ms[0].Data)
	}
	if udpBytes+total > maxTransport(s.app.Addr().Is6()) {
		return fmt.Errorf("datagram of %d bytes: %w", total, errTooLong)
	}
	b := s.k.pool.get(bufferHead + udpBytes + total)
	defer s.k.pool.put(b)
	t := b.all[bufferHead:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], s.app.Port())
	binary.BigEndian.PutUint16(t[4:], uint16(udpBytes+total))
	at := udpBytes
	for i := range ms {
		at += copy(t[at:], ms[i].Data)
	}
	return s.k.sendTogether(s.queue, b.data(), s.app.Addr().Is6(), addrOf(src.Addr()), s.key.src, protoUDP, size)
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
		limit := flow.UDPIdleDNS
		if s.other.Load() {
			limit = flow.UDPIdle // the handler may end it sooner
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
