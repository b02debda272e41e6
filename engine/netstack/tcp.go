package netstack

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	idleTCP     = flow.IdleTranslation
	tcpTimeWait = flow.TranslationTimeWait
)

// A flow's phase only grows.
//
//	held ──Accept──► opening ──handshake──► open ──RST or both FIN──► closed
//	  └────────── Reject, RST, timeout ───────┴──────────────────────►
const (
	held    uint32 = iota // the SYN waits for the handler's word
	opening               // the SYN has gone to the listener
	open
	closed
)

const finOut, finBack = 1, 2 // tcpFlow.fins: from the app, from the listener

// tcpFlow is one translated connection. What is not atomic never changes.
type tcpFlow struct {
	key      tuple   // as the app sends it
	out      rewrite // app's packets, to the listener
	back     rewrite // the listener's packets, to the app
	isn      uint32  // of the app's SYN
	slot     uint16
	gone     bool          // the slot was given back; guarded by family.mu
	closedAt time.Duration // when TIME_WAIT began; guarded by family.mu

	phase   atomic.Uint32
	fins    atomic.Uint32
	seen    atomic.Int64             // last packet, time since kernel.start
	waiting atomic.Pointer[tcpAsked] // who wants the accepted connection; nil if nobody
}

// rewrite is what one direction of a flow becomes.
type rewrite struct {
	src, dst     addr
	sport, dport uint16
	addrs, full  uint16 // what the change adds to a sum: addresses; addresses and ports
}

func newRewrite(from tuple, to tuple) rewrite {
	r := rewrite{src: to.src, dst: to.dst, sport: to.sport, dport: to.dport}
	r.addrs = delta(from.dst[:], to.dst[:], delta(from.src[:], to.src[:], 0))
	ports := add(add(to.sport, ^from.sport), add(to.dport, ^from.dport))
	r.full = add(r.addrs, ports)
	return r
}

// apply changes the addresses and ports of p and corrects its checksums
// (RFC 1624). Where the kernel has left the TCP checksum to the device
// (super-packets always), the field holds the sum of the pseudo header alone,
// not complemented, and ports do not count.
func (r *rewrite) apply(p *packet) {
	ip, t := p.ip, p.transport()
	if p.v6 {
		copy(ip[8:24], r.src[:])
		copy(ip[24:40], r.dst[:])
	} else {
		copy(ip[12:16], r.src[12:])
		copy(ip[16:20], r.dst[12:])
		binary.BigEndian.PutUint16(ip[10:], ^add(^binary.BigEndian.Uint16(ip[10:]), r.addrs))
	}
	binary.BigEndian.PutUint16(t, r.sport)
	binary.BigEndian.PutUint16(t[2:], r.dport)
	field := binary.BigEndian.Uint16(t[16:])
	if p.partial() {
		field = add(field, r.addrs)
	} else {
		field = ^add(^field, r.full)
	}
	binary.BigEndian.PutUint16(t[16:], field)
}

// packetTCP translates one packet, or starts a flow, or refuses.
func (k *kernel) packetTCP(ctx context.Context, q platform.Queue, f *family, p *packet) {
	t := p.transport()
	if head := int(t[12]>>4) * 4; head < tcpBytes || head > len(t) {
		k.counters.malformed.Add(1)
		return
	}
	key, flags := p.tuple(), t[13]
	if f.isPeer(p.dst) { // family.carries has seen that it comes from us
		flow := f.byPeer(p.dst, key.dport)
		if flow == nil || key.sport != f.port {
			k.reset(q, p)
			return
		}
		k.forward(q, f, flow, &flow.back, p, finBack)
		return
	}
	flow := k.tcp.get(&key)
	syn := flags&(tcpSYN|tcpACK|tcpRST|tcpFIN) == tcpSYN
	if flow != nil && syn && !flow.repeats(t) {
		k.forget(f, flow)
		flow = nil
	}
	switch {
	case flow == nil && syn:
		k.ask(ctx, q, f, p, key)
	case flow == nil:
		k.reset(q, p) // opened before we were here, or forgotten
	case flow.phase.Load() == held:
		if flags&tcpRST != 0 {
			k.forget(f, flow)
		} // else a repeated SYN: the first one is waiting
	default:
		k.forward(q, f, flow, &flow.out, p, finOut)
	}
}

// repeats reports whether a SYN belongs to the flow, rather than to a new
// connection from the same port after the old one has ended.
func (f *tcpFlow) repeats(tcp []byte) bool {
	same := binary.BigEndian.Uint32(tcp[4:]) == f.isn
	switch f.phase.Load() {
	case held:
		return same
	case closed:
		return false
	}
	return true // the kernel answers as RFC 9293 section 3.10.7.4 says
}

// forward writes a packet of a flow to its other end. fin is the direction.
func (k *kernel) forward(q platform.Queue, f *family, flow *tcpFlow, r *rewrite, p *packet, fin uint32) {
	flags := p.transport()[13]
	now := int64(k.now())
	if now-flow.seen.Load() > int64(time.Second) {
		flow.seen.Store(now) // not for every packet: two queues would fight over the cache line
	}
	r.apply(p)
	k.write(q, p.raw)
	if flags&(tcpFIN|tcpRST) == 0 {
		return
	}
	if flags&tcpRST != 0 || flow.fins.Or(fin)|fin == finOut|finBack {
		k.closeFlow(f, flow)
	}
}

// closeFlow starts a flow's TIME_WAIT.
func (k *kernel) closeFlow(f *family, flow *tcpFlow) {
	if flow.phase.Swap(closed) == closed {
		return
	}
	if w := flow.waiting.Swap(nil); w != nil {
		w.conn <- nil
	}
	f.mu.Lock()
	flow.closedAt = k.now()
	f.closed.push(flow)
	f.mu.Unlock()
}

// forget removes a flow at once.
func (k *kernel) forget(f *family, flow *tcpFlow) {
	k.tcp.remove(flow.key, flow)
	k.abandon(flow)
	f.release(flow)
}

// abandon marks a flow as ended, and tells who waits for it.
func (k *kernel) abandon(flow *tcpFlow) {
	flow.phase.Store(closed)
	if w := flow.waiting.Swap(nil); w != nil {
		w.conn <- nil
	}
}

// expireTCP forgets flows whose TIME_WAIT is over and open ones gone silent.
func (k *kernel) expireTCP(now time.Duration) {
	for _, f := range k.families() {
		for flow := f.expired(now); flow != nil; flow = f.expired(now) {
			k.forget(f, flow)
		}
	}
	if k.tcp.count.Load() == 0 {
		return
	}
	k.tcp.each(func(key tuple, flow *tcpFlow) {
		phase := flow.phase.Load()
		if (phase == opening || phase == open) && now-time.Duration(flow.seen.Load()) > idleTCP {
			k.forget(k.familyOf(key.src), flow)
		}
	})
}

// expired takes the next flow whose TIME_WAIT is over, or nil. One that still
// sees packets waits anew.
func (f *family) expired(now time.Duration) *tcpFlow {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		flow := f.oldestClosed()
		if flow == nil || now-flow.closedAt < tcpTimeWait {
			return nil
		}
		f.closed.pop()
		if now-time.Duration(flow.seen.Load()) >= tcpTimeWait {
			return flow
		}
		flow.closedAt = now
		f.closed.push(flow)
	}
}

func (k *kernel) familyOf(a addr) *family {
	if a.netip().Is4() {
		return k.v4
	}
	return k.v6
}
