package route

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

type datagram struct {
	data string
	addr net.Addr
}

// appSocket is the inbound side of one UDP socket in memory.
type appSocket struct {
	in, out chan datagram
	refused chan netip.AddrPort
	closed  chan struct{}
	once    sync.Once

	mu       sync.Mutex
	deadline chan struct{}
	timer    *time.Timer
}

func newAppSocket() *appSocket {
	return &appSocket{in: make(chan datagram, 100), out: make(chan datagram, 100), refused: make(chan netip.AddrPort, 100),
		closed: make(chan struct{}), deadline: make(chan struct{})}
}

func (a *appSocket) ReadFrom(p []byte) (int, net.Addr, error) {
	a.mu.Lock()
	late := a.deadline
	a.mu.Unlock()
	select {
	case d := <-a.in:
		return copy(p, d.data), d.addr, nil
	case <-a.closed:
		return 0, nil, net.ErrClosed
	case <-late:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (a *appSocket) WriteTo(p []byte, from net.Addr) (int, error) {
	a.out <- datagram{string(p), from}
	return len(p), nil
}

func (a *appSocket) SetReadDeadline(t time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
	}
	late := make(chan struct{})
	a.deadline = late
	a.timer = time.AfterFunc(time.Until(t), func() { close(late) })
	return nil
}

func (a *appSocket) Close() error                     { a.once.Do(func() { close(a.closed) }); return nil }
func (a *appSocket) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (a *appSocket) SetDeadline(t time.Time) error    { return a.SetReadDeadline(t) }
func (a *appSocket) SetWriteDeadline(time.Time) error { return nil }
func (a *appSocket) Refuse(dst netip.AddrPort)        { a.refused <- dst }

func (a *appSocket) ask(t *testing.T, data string, to net.Addr) datagram {
	t.Helper()
	a.in <- datagram{data, to}
	select {
	case d := <-a.out:
		return d
	case <-time.After(5 * time.Second):
		t.Fatalf("no answer to %q", data)
		return datagram{}
	}
}

func (a *appSocket) expectRefused(t *testing.T, data string, to netip.AddrPort) {
	t.Helper()
	a.in <- datagram{data, flow.UDPAddrOf(to)}
	select {
	case got := <-a.refused:
		if got != to {
			t.Errorf("refused %v, want %v", got, to)
		}
	case d := <-a.out:
		t.Errorf("an answer %v", d)
	case <-time.After(5 * time.Second):
		t.Errorf("%v is not refused", to)
	}
}

// udpServer answers with its name and what it got, and counts.
func udpServer(t *testing.T, name string, addr string) (netip.AddrPort, *atomic.Int32) {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n := new(atomic.Int32)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65535)
		for {
			k, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			n.Add(1)
			pc.WriteTo(append([]byte(name+":"), b[:k]...), from)
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	return flow.AddrPortOf(pc.LocalAddr()), n
}

func udpFlow(dst netip.AddrPort) flow.Flow {
	return flow.Flow{ID: flow.NextID(), Network: flow.UDP, Inbound: flow.TUN, Dst: dst, Target: flow.TargetOf(dst), Start: time.Now()}
}

func carryPackets(t *testing.T, h *Handler, f flow.Flow, a net.PacketConn) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.HandlePackets(ctx, f, a) }()
	t.Cleanup(func() { cancel(); wait(t, done) })
}

// TestPacketsNames: two names on the same port are told apart, although only
// real addresses come back.
func TestPacketsNames(t *testing.T) {
	one, _ := udpServer(t, "one", "127.0.0.1:0")
	two, _ := udpServer(t, "two", net.JoinHostPort("127.0.0.3", port(one)))
	fakes := map[netip.Addr]string{netip.MustParseAddr("198.18.1.1"): "one.example", netip.MustParseAddr("198.18.1.2"): "two.example"}
	direct := newUpstream(t, "direct://", upstream.Options{Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
		return map[string][]netip.Addr{"one.example": {one.Addr()}, "two.example": {two.Addr()}}[name], nil
	}})
	h := New(Options{Direct: direct, Current: func() *upstream.Upstream { return direct }, Resolve: func(a netip.Addr) (string, bool) {
		name, ok := fakes[a]
		return name, ok
	}})
	a := newAppSocket()
	fake1, fake2 := netip.AddrPortFrom(netip.MustParseAddr("198.18.1.1"), one.Port()), netip.AddrPortFrom(netip.MustParseAddr("198.18.1.2"), one.Port())
	f := udpFlow(fake1)
	carryPackets(t, h, f, a)
	for range 3 {
		for _, c := range []struct {
			to   netip.AddrPort
			want string
		}{{fake1, "one:x"}, {fake2, "two:x"}, {one, "one:x"}} {
			if d := a.ask(t, "x", flow.UDPAddrOf(c.to)); d.data != c.want || flow.AddrPortOf(d.addr) != c.to {
				t.Errorf("to %v: %+v", c.to, d)
			}
		}
	}
	if d := a.ask(t, "n", flow.NameAddr{Name: "two.example", Port: two.Port()}); d.data != "two:n" {
		t.Errorf("by name: %+v", d)
	}
	big := string(bytes.Repeat([]byte("b"), 60000))
	if d := a.ask(t, big, flow.UDPAddrOf(fake1)); d.data != "one:"+big {
		t.Errorf("big datagram: %d bytes", len(d.data))
	}
	l := h.Flows()
	for range 100 { // counted after it is delivered
		if l = h.Flows(); l[0].Down == 60010+44 && l[0].Up == 60010 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(l) != 1 || l[0].Flow.ID != f.ID || l[0].Up != 60010 || l[0].Down != 60010+44 || l[0].Flow.Target.Name != "one.example" || l[0].FirstByte == 0 {
		t.Errorf("%+v", l)
	}
}

// TestPacketsNamesKeepRights: a rule that names the target opens another user's
// port to datagrams as it does to connections, on a socket that also sends to a
// name that no rule has opened, whichever was first.
func TestPacketsNamesKeepRights(t *testing.T) {
	server, got := udpServer(t, "s", "127.0.0.1:0")
	set, err := rules.Compile([]rules.Rule{{Domain: []string{"opened.example"}, Via: "direct"}})
	if err != nil {
		t.Fatal(err)
	}
	opened, other := flow.NameAddr{Name: "opened.example", Port: server.Port()}, flow.NameAddr{Name: "other.example", Port: server.Port()}
	for _, first := range []flow.NameAddr{opened, other} {
		h := handler(t, func(o *Options) {
			o.Rules = set
			o.Owner = func(_ string, local, _ netip.AddrPort) (uint32, bool) {
				return 1000 + uint32(local.Port()), true // each socket is another user's
			}
		})
		a := newAppSocket()
		f := udpFlow(netip.AddrPort{})
		f.Target = flow.Target{Name: first.Name, Port: first.Port}
		carryPackets(t, h, f, a)
		before := got.Load()
		for i := range int32(3) {
			a.in <- datagram{"refused", other}
			if d := a.ask(t, "x", opened); d.data != "s:x" {
				t.Errorf("%s first: %+v", first, d)
			}
			if n := got.Load() - before; n != i+1 {
				t.Errorf("%s first: %d datagrams have come, want %d", first, n, i+1)
			}
		}
	}
}

func port(ap netip.AddrPort) string { _, p, _ := net.SplitHostPort(ap.String()); return p }

// TestPacketsNeverLeak: an upstream without UDP, and each policy.
func TestPacketsNeverLeak(t *testing.T) {
	server, got := udpServer(t, "s", "127.0.0.1:0")
	set, err := rules.Compile([]rules.Rule{{Port: []rules.PortRange{{From: 9, To: 9}}, Via: "block"}})
	if err != nil {
		t.Fatal(err)
	}
	connect := newUpstream(t, "http://127.0.0.1:1", upstream.Options{})
	for _, c := range []struct {
		policy UDPPolicy
		leaves bool
	}{{UDPAuto, false}, {UDPBlock, false}, {UDPDirect, true}} {
		got.Store(0)
		h := handler(t, func(o *Options) {
			o.Rules, o.UDP = set, c.policy
			o.Current = func() *upstream.Upstream { return connect }
		})
		a := newAppSocket()
		carryPackets(t, h, udpFlow(server), a)
		if c.leaves {
			if d := a.ask(t, "x", flow.UDPAddrOf(server)); d.data != "s:x" {
				t.Errorf("%+v", d)
			}
		} else {
			for range 3 {
				a.expectRefused(t, "x", server)
			}
			a.expectRefused(t, "x", netip.AddrPortFrom(server.Addr(), 443))
			if n := h.Counters(); n.UDPBlocked != 4 || n.Blocked != 2 || got.Load() != 0 || n.Up+n.DirectUp != 0 {
				t.Errorf("policy %v: %+v, %d leaked", c.policy, n, got.Load())
			}
		}
		a.expectRefused(t, "x", netip.AddrPortFrom(server.Addr(), 9))
	}
}

// TestPacketsDeadProxy: refused at once, and not dialled for every datagram.
func TestPacketsDeadProxy(t *testing.T) {
	var dials atomic.Int32
	dead := newUpstream(t, "socks5://127.0.0.1:1", upstream.Options{})
	h := handler(t, func(o *Options) {
		o.Current = func() *upstream.Upstream { return dead }
		o.Observe = func(*upstream.Upstream, error) { dials.Add(1) }
	})
	a := newAppSocket()
	to := netip.MustParseAddrPort("127.0.0.1:9999")
	carryPackets(t, h, udpFlow(to), a)
	for range 20 {
		a.expectRefused(t, "x", to)
	}
	if n := dials.Load(); n < 1 || n > 2 {
		t.Errorf("%d dials", n)
	}
	if c := h.Counters(); c.Refused != 1 || c.Blocked != 0 || c.UDPBlocked != 20 {
		t.Errorf("one flow, which the upstream did not take: %+v", c)
	}
}

// associating is a handler behind a SOCKS5 proxy that answers each request for
// an association with reply and hangs up, and how many it was sent.
func associating(t *testing.T, reply ...byte) (*Handler, *atomic.Int32) {
	asked := new(atomic.Int32)
	proxy := serve(t, func(c *net.TCPConn) {
		b := make([]byte, 64)
		c.Read(b)
		c.Write([]byte{5, 0})
		if n, _ := c.Read(b); n > 1 && b[1] == 3 {
			asked.Add(1)
			c.Write(reply)
		}
	})
	u := newUpstream(t, "socks5://"+proxy.String(), upstream.Options{})
	return handler(t, func(o *Options) { o.Current = func() *upstream.Upstream { return u } }), asked
}

// TestPacketsRefusedUDP: a proxy that says that it takes no UDP is asked once.
func TestPacketsRefusedUDP(t *testing.T) {
	h, asked := associating(t, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0)
	for i := range 3 {
		a := newAppSocket()
		to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(443+i))
		carryPackets(t, h, udpFlow(to), a)
		a.expectRefused(t, "x", to)
		a.expectRefused(t, "x", to)
	}
	if c := h.Counters(); asked.Load() != 1 || c.Refused != 1 || c.Blocked != 2 || c.UDPBlocked != 6 {
		t.Errorf("asked %d times, %+v", asked.Load(), c)
	}
}

// TestPacketsAfterHold: a socket that was refused while traffic was held, or
// before a fake address had a name, is carried afterwards.
func TestPacketsAfterHold(t *testing.T) {
	server, got := udpServer(t, "s", "127.0.0.1:0")
	fake := netip.AddrPortFrom(netip.MustParseAddr("198.18.1.7"), server.Port())
	var held, known atomic.Bool
	h := handler(t, func(o *Options) {
		o.Blocked = held.Load
		o.Resolve = func(a netip.Addr) (string, bool) {
			if a != fake.Addr() {
				return "", false
			}
			if known.Load() {
				return "127.0.0.1", true // a name that needs no resolver
			}
			return "", true
		}
	})
	a := newAppSocket()
	held.Store(true)
	carryPackets(t, h, udpFlow(server), a)
	for range 3 {
		a.expectRefused(t, "x", server)
	}
	if n := h.Counters(); n.UDPBlocked != 3 || n.Blocked != 1 || got.Load() != 0 {
		t.Errorf("while held: %+v, %d leaked", n, got.Load())
	}
	held.Store(false)
	if d := a.ask(t, "y", flow.UDPAddrOf(server)); d.data != "s:y" {
		t.Errorf("after the hold: %+v", d)
	}
	a.expectRefused(t, "x", fake)
	known.Store(true)
	if d := a.ask(t, "z", flow.UDPAddrOf(fake)); d.data != "s:z" {
		t.Errorf("after the name is known: %+v", d)
	}
}

// TestPacketsProcessOnce: who owns a socket is asked once for a destination,
// and never for a query.
func TestPacketsProcessOnce(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	set, err := rules.Compile([]rules.Rule{{Process: []string{"curl"}, Via: "block"}})
	if err != nil {
		t.Fatal(err)
	}
	dns53 := netip.MustParseAddrPort("9.9.9.9:53")
	for first, want := range map[netip.AddrPort]int32{server: 1, dns53: 0} {
		var asked atomic.Int32
		h := handler(t, func(o *Options) {
			o.Rules, o.DNS = set, &dnsFake{}
			o.Process = func(string, netip.AddrPort, netip.AddrPort) string { asked.Add(1); return "/bin/nc" }
		})
		a := newAppSocket()
		carryPackets(t, h, udpFlow(first), a)
		a.ask(t, lookup(1), flow.UDPAddrOf(first))
		a.ask(t, lookup(28), flow.UDPAddrOf(first))
		if n := asked.Load(); n != want {
			t.Errorf("%v: asked %d times, want %d", first, n, want)
		}
	}
}

// TestPacketsOutliveDNS: a socket that began with a query is not cut off when no
// more queries come, and carries datagrams of any length.
func TestPacketsOutliveDNS(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	dns53 := netip.MustParseAddrPort("9.9.9.9:53")
	h := handler(t, func(o *Options) { o.DNS = &dnsFake{idle: 300 * time.Millisecond} })
	a := newAppSocket()
	carryPackets(t, h, udpFlow(dns53), a)
	a.ask(t, lookup(1), flow.UDPAddrOf(dns53))
	a.ask(t, "x", flow.UDPAddrOf(server))
	time.Sleep(500 * time.Millisecond)
	select {
	case <-a.closed:
		t.Fatal("cut off for want of queries")
	default:
	}
	long := strings.Repeat("y", 20000)
	if d := a.ask(t, long, flow.UDPAddrOf(server)); d.data != "s:"+long {
		t.Errorf("%d bytes came back", len(d.data))
	}
	if d := a.ask(t, lookup(1), flow.UDPAddrOf(dns53)); d.data != "dns:"+lookup(1) {
		t.Errorf("%+v", d)
	}
}

// patient is an appSocket that can be waited for.
type patient struct {
	*appSocket
	next    chan datagram // handed over by WaitRead
	readers atomic.Int32  // of ReadFrom, without a datagram
}

func (p *patient) WaitRead() error {
	select {
	case d := <-p.in:
		p.next <- d
		return nil
	case <-p.closed:
		return net.ErrClosed
	}
}

func (p *patient) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-p.next:
		return copy(b, d.data), d.addr, nil
	default:
		p.readers.Add(1)
		return p.appSocket.ReadFrom(b)
	}
}

// TestPacketsWaitWithoutBuffer: a socket that can be waited for is read from
// only when there is a datagram.
func TestPacketsWaitWithoutBuffer(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	h := handler(t, nil)
	p := &patient{appSocket: newAppSocket(), next: make(chan datagram, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.HandlePackets(ctx, udpFlow(server), p) }()
	for range 3 {
		if d := p.ask(t, "x", flow.UDPAddrOf(server)); d.data != "s:x" {
			t.Errorf("%+v", d)
		}
	}
	cancel()
	wait(t, done)
	if n := p.readers.Load(); n != 0 {
		t.Errorf("%d reads without a datagram", n)
	}
}

// TestPacketsLeavingProxy: a proxy that takes associations and drops them is
// not asked for one with every datagram.
func TestPacketsLeavingProxy(t *testing.T) {
	h, asked := associating(t, 5, 0, 0, 1, 127, 0, 0, 1, 0, 9)
	a := newAppSocket()
	to := netip.MustParseAddrPort("127.0.0.1:9999")
	carryPackets(t, h, udpFlow(to), a)
	for range 30 {
		a.in <- datagram{"x", flow.UDPAddrOf(to)}
		time.Sleep(10 * time.Millisecond)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("%d associations in 0.3 s", n)
	}
}

func TestPacketsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		connect, err := upstream.New(upstream.Spec{Name: "p", Scheme: "http", Host: "127.0.0.1", Port: 1}, upstream.Options{})
		if err != nil {
			t.Fatal(err)
		}
		h := New(Options{Direct: connect, Current: func() *upstream.Upstream { return connect }})
		begin := time.Now()
		a := newAppSocket()
		to := netip.MustParseAddrPort("127.0.0.1:9999")
		go func() {
			time.Sleep(30 * time.Second)
			a.in <- datagram{"x", flow.UDPAddrOf(to)}
		}()
		h.HandlePackets(t.Context(), udpFlow(to), a)
		if d := time.Since(begin); d != 150*time.Second { // RFC 4787 REQ-5: two minutes at least
			t.Errorf("ended after %v", d)
		}
	})
}
