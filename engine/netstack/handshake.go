package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	maxPending   = 8192           // handshakes held at a time; more are refused
	maxPendingTo = maxPending / 4 // of them, to one destination: a flood leaves room for others
)

// tcpAsked is a new flow waiting for the handler's word; it is the handler's
// flow.Pending. The first SYN is held here, later ones are swallowed.
type tcpAsked struct {
	k       *kernel
	family  *family
	flow    *tcpFlow
	to      *atomic.Int64  // handshakes held to this destination, or one that hashes like it
	queue   platform.Queue // the one the SYN came by: the TUN keeps a flow on its queue
	syn     []byte         // with its virtio_net_hdr
	conn    chan *net.TCPConn
	decided atomic.Bool
}

var _ flow.Pending = (*tcpAsked)(nil)

// ask opens a flow for the SYN p and asks the handler, on a goroutine of its own.
func (k *kernel) ask(ctx context.Context, q platform.Queue, f *family, p *packet, key tuple) {
	to := &k.pendingTo[(&tuple{dst: key.dst, dport: key.dport}).hash(k.tcp.seed)%uint64(len(k.pendingTo))]
	if k.pending.Load() >= maxPending || to.Load() >= maxPendingTo {
		k.counters.full.Add(1)
		k.reset(q, p)
		return
	}
	slot, peer, ok := f.take(func(old *tcpFlow) {
		k.tcp.remove(old.key, old)
		f.slots[old.slot].Store(nil)
	})
	if !ok {
		k.counters.full.Add(1)
		k.reset(q, p)
		return
	}
	inner := tuple{src: peer, sport: firstPeerPort + slot, dst: f.tun, dport: f.port}
	fl := &tcpFlow{
		key: key, slot: slot, isn: binary.BigEndian.Uint32(p.transport()[4:]),
		out: newRewrite(key, inner),
		back: newRewrite(tuple{src: f.tun, sport: f.port, dst: peer, dport: inner.sport},
			tuple{src: key.dst, sport: key.dport, dst: key.src, dport: key.sport}),
	}
	fl.seen.Store(int64(k.now()))
	if _, made := k.tcp.getOrPut(key, func() *tcpFlow { return fl }); !made {
		f.release(fl) // the same SYN came by another queue
		return
	}
	f.slots[slot].Store(fl)
	a := &tcpAsked{k: k, family: f, to: to, flow: fl, queue: q,
		syn: append([]byte(nil), p.raw...), conn: make(chan *net.TCPConn, 1)}
	k.pending.Add(1)
	to.Add(1)
	ok = k.spawn(func() {
		if f.isProbe(key.srcAddrPort(), key.dstAddrPort()) {
			a.answer()
			return
		}
		k.handler.HandleStream(ctx, flow.Flow{
			ID: flow.NextID(), Network: flow.TCP, Inbound: flow.TUN,
			Src: key.srcAddrPort(), Dst: key.dstAddrPort(),
			Target: flow.TargetOf(key.dstAddrPort()), Start: time.Now(),
		}, a)
		a.Reject(flow.Refused) // nothing, if the handler has decided
	})
	if !ok {
		a.Reject(flow.Refused)
	}
}

var (
	errDecided = errors.New("the flow was accepted or rejected before")
	errAppGone = errors.New("the app has given up the connection")
)

// Accept implements flow.Pending: the held SYN goes to our listener. The
// connection is the *net.TCPConn that the kernel accepted.
func (a *tcpAsked) Accept() (flow.StreamConn, error) {
	if !a.decided.CompareAndSwap(false, true) {
		return nil, errDecided
	}
	defer a.settled()
	a.flow.waiting.Store(a)
	if !a.flow.phase.CompareAndSwap(held, opening) {
		return nil, errAppGone
	}
	p, _ := parse(a.syn) // it was parsed before
	a.flow.out.apply(&p)
	a.k.write(a.queue, p.raw)
	a.syn = nil

	t := time.NewTimer(flow.AcceptWithin)
	defer t.Stop()
	var why error
	select {
	case c := <-a.conn:
		if c == nil {
			return nil, errAppGone
		}
		return c, nil
	case <-t.C:
		why = fmt.Errorf("no handshake with the app within %v (does a firewall drop what comes in by the tun device?)", flow.AcceptWithin)
	case <-a.k.done:
		why = net.ErrClosed
	}
	if a.flow.waiting.Swap(nil) == nil { // it has come in this moment
		if c := <-a.conn; c != nil {
			return c, nil
		}
	}
	a.k.closeFlow(a.family, a.flow)
	return nil, why
}

// Reject implements flow.Pending: RST, so that the app fails at once. An
// unreachable host is told by ICMP first, which gives the better error.
func (a *tcpAsked) Reject(reason flow.Reason) {
	if !a.decided.CompareAndSwap(false, true) {
		return
	}
	defer a.settled()
	a.k.counters.refused.Add(1)
	live := a.flow.phase.CompareAndSwap(held, closed)
	a.k.forget(a.family, a.flow)
	if !live {
		return
	}
	p, _ := parse(a.syn)
	if reason == flow.Unreachable {
		a.k.unreachable(a.queue, &p, noHost())
	}
	a.k.reset(a.queue, &p)
}

// settled makes room for another handshake.
func (a *tcpAsked) settled() {
	a.k.pending.Add(-1)
	a.to.Add(-1)
}

// accept gives the connections that the listener accepts to whom they belong,
// until the listener is closed.
func (k *kernel) accept(f *family) {
	acceptAll(k, f.listener, func(c *net.TCPConn) {
		if !k.deliver(f, c) {
			abort(c) // a goodbye would not reach anybody
		}
	})
}

// deliver reports false if nobody waits for c.
func (k *kernel) deliver(f *family, c *net.TCPConn) bool {
	from := flow.AddrPortOf(c.RemoteAddr())
	fl := f.byPeer(addrOf(from.Addr()), from.Port())
	if fl == nil {
		return false
	}
	a := fl.waiting.Swap(nil)
	if a == nil {
		return false
	}
	fl.phase.CompareAndSwap(opening, open)
	a.conn <- c
	return true
}

// reset refuses p by RST, as a host without that connection does (RFC 9293
// section 3.10.7.1). A RST is never answered.
func (k *kernel) reset(q platform.Queue, p *packet) {
	t := p.transport()
	flags := t[13]
	if flags&tcpRST != 0 {
		return
	}
	k.counters.refused.Add(1)
	var out [bufferHead + tcpBytes]byte
	r := out[bufferHead:]
	copy(r, t[2:4])
	copy(r[2:], t[:2])
	r[12], r[13] = tcpBytes/4<<4, tcpRST
	if flags&tcpACK != 0 {
		copy(r[4:8], t[8:12])
	} else {
		n := len(t) - int(t[12]>>4)*4
		for _, f := range []byte{tcpSYN, tcpFIN} {
			if flags&f != 0 {
				n++
			}
		}
		r[13] |= tcpACK
		binary.BigEndian.PutUint32(r[8:], binary.BigEndian.Uint32(t[4:])+uint32(n))
	}
	k.send(q, out[:], p.v6, p.dst, p.src, protoTCP)
}
