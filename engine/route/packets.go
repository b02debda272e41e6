package route

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

const (
	datagramBytes = 65535 + 262      // the longest datagram, and room for a SOCKS5 header
	udpIdle       = 60 * time.Second // of a socket that got no answer yet
	udpIdleBoth   = 5 * time.Minute  // of one that did (RFC 4787 REQ-5)
	udpRetry      = time.Second      // between associations for one destination, failed or ended
	maxDests      = 1024             // remembered of one socket
	maxPaths      = 32               // associations of one socket
)

// HandlePackets implements flow.Handler.
//
//	app ─ReadFrom─► dest: verdict, kept per destination
//	                 ├─ refuse: ICMP where the inbound side can, counted
//	                 └─ path: one association per upstream ─► WriteTo
//	app ◄─WriteTo── real source back to the address the app knows ◄─ReadFrom─┘
//
// The session ends after a minute without a datagram, five once answers came.
func (h *Handler) HandlePackets(ctx context.Context, f flow.Flow, app net.PacketConn) {
	h.total.Add(1)
	h.open.Add(1)
	defer h.open.Add(-1)
	ctx, cancel := context.WithCancel(ctx)
	s := &session{h: h, flow: f, app: app, dests: make(map[netip.AddrPort]*dest), names: make(map[upstream.NameAddr]*dest)}
	first := decision{target: f.Target}
	if !h.isDNS(f.Inbound, f.Dst.Port()) {
		var to net.Addr = flow.UDPAddrOf(f.Dst)
		if f.Target.Name != "" {
			to = upstream.NameAddr{Name: f.Target.Name, Port: f.Target.Port}
		}
		if e := s.dest(f.Dst, to); e != nil {
			first = e.d
		}
	}
	s.live = h.track(f, first, cancel)
	if s.live.sum == nil {
		s.live.sum = &h.viaBytes
	}
	defer h.live.Delete(f.ID)
	// Closing app ends the loop below.
	stop := context.AfterFunc(ctx, func() { _ = app.Close() })
	if h.isDNS(f.Inbound, f.Dst.Port()) {
		h.opts.DNS.HandlePackets(ctx, f, &dnsOnly{
			PacketConn: app, other: func(p []byte, to net.Addr) { s.send(ctx, p, to) }, extend: s.extend,
		})
	} else {
		s.run(ctx)
	}
	cancel()
	stop()
	_ = app.Close()
	s.close()
}

// session is one app socket. Its fields belong to the goroutine that reads
// from app, but for those that say otherwise.
type session struct {
	h     *Handler
	flow  flow.Flow
	app   net.PacketConn
	live  *live
	dests map[netip.AddrPort]*dest
	names map[upstream.NameAddr]*dest
	paths []*path
	wg    sync.WaitGroup // paths' readers, DNS queries

	last     atomic.Int64 // unix ns of the last datagram either way
	answered atomic.Bool
	queries  atomic.Int32 // DNS queries under way beside run, see ask
}

// dest is what becomes of datagrams to one destination.
type dest struct {
	d     decision
	auto  bool     // d.u is what Current returned
	to    net.Addr // as the upstream is told
	path  *path    // nil until the first datagram, or after the association ended
	retry time.Time
	told  bool // the refusal is counted among flows
}

// run reads what the app sends until the session is idle or app is closed.
func (s *session) run(ctx context.Context) {
	s.touch()
	_ = s.app.SetReadDeadline(time.Now().Add(udpIdle))
	for {
		err := s.next(ctx)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() != nil || !s.extend() {
				return
			}
			continue
		case err != nil:
			return
		}
	}
}

// next reads one datagram and sends it. It holds no buffer before there is one,
// where app can be waited for.
func (s *session) next(ctx context.Context) error {
	if w, ok := s.app.(flow.ReadWaiter); ok {
		if err := w.WaitRead(); err != nil {
			return err
		}
	}
	b := s.h.datagrams.Get().(*[datagramBytes]byte)
	defer s.h.datagrams.Put(b)
	n, to, err := s.app.ReadFrom(b[:])
	if err == nil {
		s.send(ctx, b[:n], to)
	}
	return err
}

func (s *session) touch() { s.last.Store(time.Now().UnixNano()) }

// extend moves the read deadline to where the idle time ends; false if it has.
func (s *session) extend() bool {
	limit := udpIdle
	if s.answered.Load() {
		limit = udpIdleBoth
	}
	end := time.Unix(0, s.last.Load()).Add(limit)
	if !time.Now().Before(end) {
		return false
	}
	return s.app.SetReadDeadline(end) == nil
}

// send gives one datagram of the app to where it belongs.
func (s *session) send(ctx context.Context, p []byte, to net.Addr) {
	s.touch()
	ap := flow.AddrPortOf(to)
	if s.h.isDNS(s.flow.Inbound, ap.Port()) {
		s.ask(ctx, p, to)
		return
	}
	e := s.dest(ap, to)
	if e == nil {
		return
	}
	if e.d.u == nil || s.h.opts.Blocked != nil && s.h.opts.Blocked() {
		s.refuse(e, ap)
		return
	}
	if e.path == nil || e.path.ended.Load() {
		if time.Now().Before(e.retry) {
			s.refuse(e, ap)
			return
		}
		e.path = s.pathFor(ctx, e, ap)
		e.retry = time.Now().Add(udpRetry)
		if e.path == nil {
			s.refuse(e, ap)
			return
		}
	}
	n, err := e.path.conn.WriteTo(p, e.to)
	if err != nil {
		s.h.opts.Log.Debug("datagram not sent", "flow", s.flow.ID, "to", e.to.String(), "error", err)
		return
	}
	s.live.bytes.up.Add(uint64(n))
	e.path.sum.up.Add(uint64(n))
}

// dest finds or makes the entry of a destination; nil if it is no destination.
func (s *session) dest(ap netip.AddrPort, to net.Addr) *dest {
	name, byName := to.(upstream.NameAddr)
	var e *dest
	switch {
	case byName:
		e = s.names[name]
	case ap.IsValid():
		e = s.dests[ap]
	default:
		return nil
	}
	if e != nil && !e.d.passing && (!e.auto || e.d.u == s.h.opts.Current()) {
		return e
	}
	told := e != nil && e.told
	if len(s.dests)+len(s.names) >= maxDests { // a scan, not a conversation
		clear(s.dests)
		clear(s.names)
	}
	f := s.flow
	f.Dst = ap
	if byName {
		e = s.judge(f, flow.Target{Name: name.Name, Port: name.Port})
		s.names[name] = e
	} else {
		e = s.judge(f, flow.TargetOf(ap))
		s.dests[ap] = e
	}
	e.told = told
	return e
}

// judge decides by the rules and the UDP policy.
func (s *session) judge(f flow.Flow, t flow.Target) *dest {
	o := &s.h.opts
	e := &dest{d: s.h.decide(f, t)}
	if t := e.d.target; t.Name != "" {
		e.to = upstream.NameAddr{Name: t.Name, Port: t.Port}
	} else {
		e.to = flow.UDPAddrOf(t.AddrPort())
	}
	if e.d.u == nil {
		return e
	}
	if e.d.verdict.Kind == flow.Auto {
		e.auto = true
		switch o.UDP {
		case UDPDirect:
			e.auto, e.d.u = false, o.Direct
		case UDPBlock:
			e.auto, e.d.u = false, nil
			e.d.reason, e.d.blocked = flow.Forbidden, true
		}
	}
	return e
}

// refuse tells the app, where it can be told, and counts.
func (s *session) refuse(e *dest, ap netip.AddrPort) {
	s.h.udpBlocked.Add(1)
	if !e.told {
		e.told = true
		s.h.blocked.Add(1)
	}
	if r, ok := s.app.(flow.Refuser); ok && ap.IsValid() {
		r.Refuse(ap)
	}
}

// deliver gives the app a datagram.
func (s *session) deliver(p []byte, from net.Addr) {
	s.touch()
	s.answered.Store(true)
	if s.live.firstByte.Load() == 0 {
		s.h.cameBack(s.live)
	}
	if n, err := s.app.WriteTo(p, from); err == nil {
		s.live.bytes.down.Add(uint64(n))
	}
}

// close ends the associations and waits for all goroutines.
func (s *session) close() {
	for _, p := range s.paths {
		_ = p.conn.Close()
	}
	s.wg.Wait()
}
