package route

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// path is one association of a session with one upstream. All destinations
// share it, with exceptions: answers come from addresses that only the far
// end knows, and where two names were asked on the same port nothing tells
// whose answer it is; nor where a name and an address were. So the second of
// them gets an association of its own. Names that a rule opens (see rights.go)
// have another than names that none does.
type path struct {
	u      *upstream.Upstream
	conn   net.PacketConn
	sender flow.BatchSender // conn; nil if it is none
	sum    *traffic
	guards bool        // names that it is sent to keep their asker's rights; see rights.go
	ended  atomic.Bool // set by the reader: the association is gone

	mu    sync.Mutex
	real  map[uint16]bool                     // guarded by mu; ports of destinations the app knows by their real address
	fakes map[uint16]fakeDest                 // guarded by mu; by port; nil if there are none
	aka   map[upstream.NameAddr]flow.Datagram // guarded by mu; what the app knows a name by; nil if there are none
}

// fakeDest is a destination that the app knows by a fake address.
type fakeDest struct {
	name upstream.NameAddr
	app  netip.AddrPort
}

// pathFor finds or opens the association for a destination; nil if it cannot
// be had.
func (s *session) pathFor(ctx context.Context, e *dest, ap netip.AddrPort) *path {
	s.paths = slices.DeleteFunc(s.paths, func(p *path) bool { return p.ended.Load() })
	for _, p := range s.paths {
		if p.u == e.d.u && (e.to.Name == "" || p.guards == e.d.guarded()) && p.admit(e, ap) {
			return p
		}
	}
	packets := e.d.u.Packets()
	if packets == nil || len(s.paths) >= maxPaths {
		return nil
	}
	s.h.phases.added.Add(time.Since(s.flow.Start))
	var tr upstream.Trace
	var conn net.PacketConn
	var err error
	dial := upstream.WithTrace(ctx, &tr)
	guards := e.d.guarded()
	if guards {
		dial = upstream.WithGuard(dial, s.h.guardOf(s.flow))
	}
	aside(func() { conn, err = packets.DialPackets(dial, e.d.target) })
	s.h.outcome(ctx, e.d.u, e.d.target.Host(), err)
	if err != nil {
		if !e.told {
			e.told = true
			s.h.refused.Add(1)
		}
		s.h.opts.Log.Debug("no UDP association", "flow", s.flow.ID, "error", err)
		return nil
	}
	s.live.trace.CompareAndSwap(nil, &tr)
	p := &path{u: e.d.u, conn: conn, sum: s.h.sumOf(e.d.u), guards: guards, real: make(map[uint16]bool)}
	p.sender, _ = conn.(flow.BatchSender)
	p.admit(e, ap)
	s.paths = append(s.paths, p)
	if r, ok := conn.(flow.RefusalTeller); ok {
		if app, ok := s.app.(flow.Refuser); ok {
			r.OnRefused(func(target netip.AddrPort) {
				for _, m := range p.translate([]flow.Datagram{{Addr: target}}) {
					app.Refuse(m.Addr)
				}
			})
		}
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.receive(ctx, p)
	}()
	return p
}

// admit notes a destination, unless its answers could be taken for another's.
func (p *path) admit(e *dest, ap netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.to.Name == "" {
		if _, ok := p.fakes[ap.Port()]; ok {
			return false
		}
		p.real[ap.Port()] = true
		return true
	}
	name := upstream.NameAddr{Name: e.to.Name, Port: e.to.Addr.Port()}
	known := flow.Datagram{Addr: ap}
	if ap.IsValid() { // the app has a fake address
		if f, ok := p.fakes[ap.Port()]; ok && f.app != ap || p.real[ap.Port()] {
			return false
		}
		if p.fakes == nil {
			p.fakes = make(map[uint16]fakeDest)
		}
		p.fakes[ap.Port()] = fakeDest{name, ap}
	} else { // the app said the name itself
		known = e.to
	}
	if p.aka == nil || len(p.aka) >= maxDests {
		p.aka = make(map[upstream.NameAddr]flow.Datagram)
	}
	p.aka[name] = known
	return true
}

// translate gives ms the sources that the app knows the senders by, and leaves
// out those that it cannot know.
func (p *path) translate(ms []flow.Datagram) []flow.Datagram {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, m := range ms {
		if m.Name != "" {
			known, ok := p.aka[upstream.NameAddr{Name: m.Name, Port: m.Addr.Port()}]
			if !ok {
				continue
			}
			m.Addr, m.Name = known.Addr, known.Name
		} else if f, ok := p.fakes[m.Addr.Port()]; ok {
			m.Addr = f.app
		}
		ms[n] = m
		n++
	}
	return ms[:n]
}

// receive gives the answers of one association to the app until it ends.
func (s *session) receive(ctx context.Context, p *path) {
	if r, ok := p.conn.(flow.BatchReceiver); ok {
		_ = r.Receive(func(ms []flow.Datagram) { s.deliver(p, ms) })
	} else {
		s.receiveEach(ctx, p)
	}
	p.ended.Store(true)
	_ = p.conn.Close()
}

// receiveEach is receive where datagrams come one by one.
func (s *session) receiveEach(ctx context.Context, p *path) {
	b := s.h.datagrams.Get().(*[datagramBytes]byte)
	defer s.h.datagrams.Put(b)
	failures := 0
	for {
		n, from, err := p.conn.ReadFrom(b[:])
		if err != nil {
			// A socket may report that one peer is unreachable and work on.
			if failures++; failures < 8 && !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
				continue
			}
			return
		}
		failures = 0
		m := flow.Datagram{Data: b[:n], Addr: flow.AddrPortOf(from)}
		if name, ok := from.(upstream.NameAddr); ok {
			m.Name, m.Addr = name.Name, netip.AddrPortFrom(netip.Addr{}, name.Port)
		}
		s.deliver(p, []flow.Datagram{m})
	}
}

// ask has DNS answer one query of a socket that talks to others too.
func (s *session) ask(ctx context.Context, p []byte, to net.Addr) {
	const maxQueries = 16
	if s.queries.Add(1) > maxQueries {
		s.queries.Add(-1)
		s.h.udpLost.Add(1)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flow.QueryWithin)
	q := &query{app: s, packet: slices.Clone(p), to: to, done: ctx.Done(), cancel: cancel}
	f := s.flow
	f.Dst = flow.AddrPortOf(to)
	f.Target = flow.TargetOf(f.Dst)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer s.queries.Add(-1)
		defer cancel()
		s.h.opts.DNS.HandlePackets(ctx, f, q)
	}()
}
