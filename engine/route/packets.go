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
	datagramBytes = 65535 + 262 // the longest datagram, and room for a SOCKS5 header
	maxDests      = 1024        // remembered of one socket
	maxPaths      = 32          // associations of one socket
)

// HandlePackets implements flow.Handler.
//
//	app ─Push─► dest known, path open ─────────────────────► Send
//	 └─ReadFrom─► dest: verdict, kept per destination
//	               ├─ refuse: ICMP where the inbound side can, counted
//	               └─ path: one association per upstream ─► WriteTo
//	app ◄─Send── real source back to the address the app knows ◄─Receive─┘
//
// Where both sides can carry bursts, none of this takes a goroutine's wake-up:
// who has read the datagrams sends them.
//
// The session ends after two minutes without a datagram, five once answers came.
// A socket that only looks names up is no flow.
func (h *Handler) HandlePackets(ctx context.Context, f flow.Flow, app net.PacketConn) {
	ctx, cancel := context.WithCancel(ctx)
	s := &session{h: h, flow: f, app: app, dests: make(map[netip.AddrPort]*dest)}
	isDNS := h.toDNS(f.Inbound, f.Dst.Port()) // the first datagram, at least, may be a query
	if !isDNS {
		aside(func() { s.begin(cancel) })
	}
	// Closing app ends the loop below.
	stop := context.AfterFunc(ctx, func() { _ = app.Close() })
	if a, ok := app.(flow.Pusher); ok {
		a.Push(s.push)
	}
	if isDNS {
		h.opts.DNS.HandlePackets(ctx, f, &dnsOnly{
			PacketConn: app, extend: s.extend,
			isQuery: func(to netip.AddrPort, p []byte) bool { return h.isQuery(f.Inbound, to, p) },
			other: func(p []byte, to net.Addr) {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.live == nil {
					s.flow.Dst, s.flow.Start = flow.AddrPortOf(to), time.Now()
					s.flow.Target = flow.TargetOf(s.flow.Dst)
					aside(func() { s.begin(cancel) })
				}
				s.send(ctx, p, to)
			},
		})
	} else {
		s.run(ctx)
	}
	cancel()
	stop()
	_ = app.Close()
	s.close()
}

// aside runs f on a goroutine that ends. What takes kilobytes of stack is done
// there: the caller's stack lasts as long as the app's socket, and would keep
// them.
func aside(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// session is one app socket.
type session struct {
	h    *Handler
	flow flow.Flow // changed by begin's caller only
	app  net.PacketConn
	live *live          // nil before begin
	wg   sync.WaitGroup // paths' readers, DNS queries

	// mu is held while what the app sent is dealt with, also while that blocks.
	// The fields below are guarded by it.
	mu       sync.Mutex
	ended    bool
	dests    map[netip.AddrPort]*dest
	names    map[upstream.NameAddr]*dest // nil until a name was sent to
	paths    []*path
	lastAddr netip.AddrPort // the destination that push found last
	lastDest *dest          // nil if it is to be looked up again

	last     atomic.Int64 // unix ns of the last datagram either way
	answered atomic.Bool
	queries  atomic.Int32 // DNS queries under way beside run, see ask
}

// dest is what becomes of datagrams to one destination.
type dest struct {
	d     decision
	to    flow.Datagram // as the upstream is told; no Data
	path  *path         // nil until the first datagram, or after the association ended
	retry time.Time
	told  bool // it is counted among the flows that were not carried
}

// begin judges the first destination and makes the flow known.
func (s *session) begin(cancel context.CancelFunc) {
	s.h.total.Add(1)
	s.h.open.Add(1)
	f := &s.flow
	first := decision{target: f.Target}
	var to net.Addr = flow.UDPAddrOf(f.Dst)
	if f.Target.Name != "" {
		to = upstream.NameAddr{Name: f.Target.Name, Port: f.Target.Port}
	}
	if e := s.dest(f.Dst, to); e != nil {
		first = e.d
	}
	s.live = s.h.track(*f, first, cancel)
	if s.live.sum == nil {
		s.live.sum = &s.h.viaBytes
	}
}

// run reads what the app sends until the session is idle or app is closed.
func (s *session) run(ctx context.Context) {
	s.touch()
	_ = s.app.SetReadDeadline(time.Now().Add(flow.UDPIdleUnanswered))
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
	w, waits := s.app.(flow.ReadWaiter)
	if waits {
		if err := w.WaitRead(); err != nil {
			return err
		}
		s.mu.Lock() // before reading, so that nothing pushed overtakes
		defer s.mu.Unlock()
	}
	b := s.h.datagrams.Get().(*[datagramBytes]byte)
	defer s.h.datagrams.Put(b)
	n, to, err := s.app.ReadFrom(b[:])
	if err != nil {
		return err
	}
	if !waits {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	s.send(ctx, b[:n], to)
	return nil
}

func (s *session) touch() { s.last.Store(time.Now().UnixNano()) }

// extend moves the read deadline to where the idle time ends; false if it has.
func (s *session) extend() bool {
	limit := flow.UDPIdleUnanswered
	if s.answered.Load() {
		limit = flow.UDPIdle
	}
	end := time.Unix(0, s.last.Load()).Add(limit)
	if !time.Now().Before(end) {
		return false
	}
	return s.app.SetReadDeadline(end) == nil
}

// send gives one datagram of the app to where it belongs. The caller holds mu.
func (s *session) send(ctx context.Context, p []byte, to net.Addr) {
	s.touch()
	ap := flow.AddrPortOf(to)
	if s.h.isQuery(s.flow.Inbound, ap, p) {
		s.ask(ctx, p, to)
		return
	}
	e := s.dest(ap, to)
	if e == nil {
		s.h.udpLost.Add(1)
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
		e.retry = time.Now().Add(flow.UDPRetry)
		if e.path == nil {
			s.refuse(e, ap)
			return
		}
	}
	if _, err := e.path.conn.WriteTo(p, addrOf(e.to)); err != nil {
		s.h.udpLost.Add(1)
		s.h.opts.Log.Debug("datagram not sent", "flow", s.flow.ID, "to", addrOf(e.to).String(), "error", err)
		return
	}
	s.sent(e.path, 1, len(p))
}

// addrOf is the other end of m, for WriteTo.
func addrOf(m flow.Datagram) net.Addr {
	if m.Name != "" {
		return upstream.NameAddr{Name: m.Name, Port: m.Addr.Port()}
	}
	return flow.UDPAddrOf(m.Addr)
}

// sent counts what has left.
func (s *session) sent(p *path, datagrams, bytes int) {
	s.h.udpUp.Add(uint64(datagrams))
	s.live.bytes.up.Add(uint64(bytes))
	p.sum.up.Add(uint64(bytes))
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
	if e != nil && !e.d.passing && (!e.d.auto || e.d.u == s.h.opts.Current()) {
		return e
	}
	told := e != nil && e.told
	if len(s.dests)+len(s.names) >= maxDests { // a scan, not a conversation
		clear(s.dests)
		clear(s.names)
		s.lastDest = nil
	}
	f := s.flow
	f.Dst = ap
	if byName {
		e = s.judge(f, flow.Target{Name: name.Name, Port: name.Port})
		if s.names == nil {
			s.names = make(map[upstream.NameAddr]*dest)
		}
		s.names[name] = e
	} else {
		e = s.judge(f, flow.TargetOf(ap))
		s.dests[ap] = e
	}
	e.told = told
	return e
}

// judge decides.
func (s *session) judge(f flow.Flow, t flow.Target) *dest {
	e := &dest{d: s.h.decide(f, t)}
	e.to = flow.Datagram{Name: e.d.target.Name, Addr: e.d.target.AddrPort()}
	return e
}

// refuse tells the app, where it can be told, and counts.
func (s *session) refuse(e *dest, ap netip.AddrPort) {
	s.h.udpBlocked.Add(1)
	switch {
	case e.told:
	case e.d.u == nil:
		s.h.count(e.d)
	default: // traffic is held, or the upstream carries no UDP
		s.h.blocked.Add(1)
	}
	e.told = true
	if r, ok := s.app.(flow.Refuser); ok && ap.IsValid() {
		r.Refuse(ap)
	}
}

// deliver gives the app what has come by p. It may change ms.
func (s *session) deliver(p *path, ms []flow.Datagram) {
	known := p.translate(ms)
	lost := len(ms) - len(known)
	defer func() { s.h.udpLost.Add(uint64(lost)) }()
	if len(known) == 0 {
		return
	}
	s.touch()
	s.answered.Store(true)
	if s.live.firstByte.Load() == 0 {
		s.h.cameBack(s.live)
	}
	failed := 0
	if a, ok := s.app.(flow.BatchSender); ok {
		var done int
		done, failed, _ = a.Send(known)
		failed += len(known) - done
	} else {
		for i := range known {
			if _, err := s.app.WriteTo(known[i].Data, addrOf(known[i])); err != nil {
				failed++
			}
		}
	}
	lost += failed
	s.h.udpDown.Add(uint64(len(known) - failed))
	if failed < len(known) {
		n := uint64(payload(known))
		s.live.bytes.down.Add(n)
		p.sum.down.Add(n)
	}
}

// payload is the bytes of datagrams, together.
func payload(ms []flow.Datagram) (n int) {
	for i := range ms {
		n += len(ms[i].Data)
	}
	return n
}

// close ends the associations and the flow, and waits for all goroutines.
func (s *session) close() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	for _, p := range s.paths {
		_ = p.conn.Close()
	}
	s.wg.Wait()
	if s.live != nil {
		s.h.live.Delete(s.flow.ID)
		s.h.open.Add(-1)
	}
}
