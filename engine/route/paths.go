package route

import (
	"context"
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
// share it, with one exception: answers come from addresses that only the far
// end knows, and where two names were asked on the same port nothing tells
// whose answer it is; nor where a name and an address were. So the second of
// them gets an association of its own.
type path struct {
	u     *upstream.Upstream
	conn  net.PacketConn
	sum   *traffic
	ended atomic.Bool // set by the reader: the association is gone

	mu    sync.Mutex
	real  map[uint16]bool                // guarded by mu; ports of destinations the app knows by their real address
	fakes map[uint16]fakeDest            // guarded by mu; by port
	aka   map[upstream.NameAddr]net.Addr // guarded by mu; what the app knows a name by
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
		if p.u == e.d.u && p.admit(e, ap) {
			return p
		}
	}
	packets := e.d.u.Packets()
	if packets == nil || len(s.paths) >= maxPaths {
		return nil
	}
	s.h.phases.added.Add(time.Since(s.flow.Start))
	var tr upstream.Trace
	conn, err := packets.DialPackets(upstream.WithTrace(ctx, &tr), e.d.target)
	s.h.outcome(ctx, e.d.u, e.d.target.Host(), err)
	if err != nil {
		s.h.refused.Add(1)
		s.h.opts.Log.Debug("no UDP association", "flow", s.flow.ID, "error", err)
		return nil
	}
	s.live.trace.CompareAndSwap(nil, &tr)
	p := &path{
		u: e.d.u, conn: conn, sum: s.h.sumOf(e.d.u),
		real: make(map[uint16]bool), fakes: make(map[uint16]fakeDest), aka: make(map[upstream.NameAddr]net.Addr),
	}
	p.admit(e, ap)
	s.paths = append(s.paths, p)
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
	name, named := e.to.(upstream.NameAddr)
	switch {
	case !named:
		if _, ok := p.fakes[ap.Port()]; ok {
			return false
		}
		p.real[ap.Port()] = true
	case ap.IsValid(): // the app has a fake address
		if f, ok := p.fakes[ap.Port()]; ok && f.app != ap || p.real[ap.Port()] {
			return false
		}
		p.fakes[ap.Port()] = fakeDest{name, ap}
		p.aka[name] = flow.UDPAddrOf(ap)
	default: // the app said the name itself
		if len(p.aka) >= maxDests {
			clear(p.aka)
		}
		p.aka[name] = name
	}
	return true
}

// source is the address that the app knows the sender of an answer by; nil if
// there is none.
func (p *path) source(from net.Addr) net.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	if name, ok := from.(upstream.NameAddr); ok {
		return p.aka[name]
	}
	ap := flow.AddrPortOf(from)
	if f, ok := p.fakes[ap.Port()]; ok {
		return flow.UDPAddrOf(f.app)
	}
	return from
}

// receive gives the answers of one association to the app until it ends.
func (s *session) receive(ctx context.Context, p *path) {
	b := s.h.datagrams.Get().(*[datagramBytes]byte)
	defer s.h.datagrams.Put(b)
	failures := 0
	for {
		n, from, err := p.conn.ReadFrom(b[:])
		if err != nil {
			// A socket may report that one peer is unreachable and work on.
			if failures++; failures < 8 && !gone(err) && ctx.Err() == nil {
				continue
			}
			p.ended.Store(true)
			_ = p.conn.Close()
			return
		}
		failures = 0
		if src := p.source(from); src != nil {
			p.sum.down.Add(uint64(n))
			s.deliver(b[:n], src)
		}
	}
}

// ask has DNS answer one query of a socket that talks to others too.
func (s *session) ask(ctx context.Context, p []byte, to net.Addr) {
	const maxQueries = 16
	if s.queries.Add(1) > maxQueries {
		s.queries.Add(-1)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
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
