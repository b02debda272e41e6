package route

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t testing.TB, handle func(c *net.TCPConn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return flow.AddrPortOf(ln.Addr())
}

func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// pending is an app that waits on a loopback socket, or one wrapped to hide
// that it is a kernel socket.
type pending struct {
	conn     flow.StreamConn
	accepted bool
	fail     error
	rejected flow.Reason
}

func (p *pending) Accept() (flow.StreamConn, error) {
	p.accepted = true
	return p.conn, p.fail
}
func (p *pending) Reject(r flow.Reason) { p.rejected = r; p.conn.Close() }

// opaque hides the kernel socket.
type opaque struct{ flow.StreamConn }

func (o opaque) SetLinger(s int) error { return o.StreamConn.(*net.TCPConn).SetLinger(s) }

// pair is a connected pair of kernel sockets.
func pair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func newUpstream(t testing.TB, rawURL string, o upstream.Options) *upstream.Upstream {
	t.Helper()
	s, err := proxy.ParseURL(strings.SplitN(rawURL, ":", 2)[0], rawURL)
	if err != nil {
		t.Fatal(err)
	}
	u, err := upstream.New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// handler routes everything directly unless change says otherwise; names are
// this machine.
func handler(t testing.TB, change func(*Options)) *Handler {
	t.Helper()
	direct := newUpstream(t, "direct://", upstream.Options{Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
		if strings.HasSuffix(name, ".invalid") {
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}})
	o := Options{Direct: direct, Current: func() *upstream.Upstream { return direct }}
	if change != nil {
		change(&o)
	}
	return New(o)
}

func tcpFlow(t flow.Target) flow.Flow {
	return flow.Flow{ID: flow.NextID(), Network: flow.TCP, Inbound: flow.TUN, Dst: t.AddrPort(), Target: t, Start: time.Now()}
}

// carry runs HandleStream in the background.
func carry(h *Handler, ctx context.Context, f flow.Flow, p *pending) (done chan struct{}) {
	done = make(chan struct{})
	go func() { defer close(done); h.HandleStream(ctx, f, p) }()
	return done
}

func wait(t testing.TB, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(8 * time.Second):
		t.Fatal("the flow does not end")
	}
}

func TestStreamEchoCounts(t *testing.T) {
	target := flow.TargetOf(serve(t, echo))
	for _, hidden := range []bool{false, true} {
		h := handler(t, nil)
		app, in := pair(t)
		p := &pending{conn: in}
		if hidden {
			p.conn = opaque{in}
		}
		f := tcpFlow(target)
		done := carry(h, t.Context(), f, p)
		data := make([]byte, 5<<20)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		app.Write(data[:1000])
		got := make([]byte, len(data))
		io.ReadFull(app, got[:1000])
		l := h.Flows()
		for end := time.Now().Add(10 * time.Second); len(l) == 1 && (l[0].Up < 1000 || l[0].Down < 1000) && time.Now().Before(end); l = h.Flows() {
			time.Sleep(time.Millisecond) // bytes are counted once they are written
		}
		if len(l) != 1 || l[0].Flow.ID != f.ID || l[0].Up != 1000 || l[0].Down != 1000 || l[0].Via != "direct" ||
			l[0].FirstByte == 0 || l[0].Trace.Dial == 0 || l[0].Rule != "default" || h.Counters().Open != 1 {
			t.Fatalf("while it runs: %+v", l)
		}
		go func() { app.Write(data[1000:]); app.CloseWrite() }()
		rest, err := io.ReadAll(app)
		if err != nil || !bytes.Equal(append(got[:1000], rest...), data) {
			t.Fatalf("%d bytes: %v", len(rest), err)
		}
		wait(t, done)
		c := h.Counters()
		if c.Open != 0 || c.Total != 1 || c.DirectUp != uint64(len(data)) || c.DirectDown != uint64(len(data)) || c.Up != 0 || len(h.Flows()) != 0 {
			t.Errorf("%+v", c)
		}
		if l := h.Latency(); l.FirstByte[0] <= 0 || l.Added[0] <= 0 || l.Dial[0] <= 0 || l.TLS != (Percentiles{}) {
			t.Errorf("latency %+v", l)
		}
	}
}

// TestRelayIsByteExact: any sequence of writes, in both directions at once,
// with either side closing first, arrives as it was sent.
func TestRelayIsByteExact(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		h := handler(t, nil)
		appOut, appIn := pair(t)
		upIn, upOut := pair(t)
		wrap := func(c *net.TCPConn, hide bool) flow.StreamConn {
			if hide {
				return opaque{c}
			}
			return c
		}
		l := &live{sum: &h.viaBytes}
		done := make(chan struct{})
		a, u := wrap(appIn, rapid.Bool().Draw(r, "hide app")), wrap(upIn, rapid.Bool().Draw(r, "hide up"))
		go func() { defer close(done); h.relay(t.Context(), l, a, u) }()
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 5000), rapid.IntRange(30000, 400000)), 0, 5)
		appFirst := rapid.Bool().Draw(r, "app closes first")
		var wg sync.WaitGroup
		firstClosed := make(chan struct{})
		side := func(from, to *net.TCPConn, sizes []int, first bool) {
			var want []byte
			for _, n := range sizes {
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(rand.Uint32())
				}
				want = append(want, b...)
			}
			wg.Add(2)
			go func() {
				defer wg.Done()
				at := 0
				for i, n := range sizes {
					if !first && i == len(sizes)/2 {
						<-firstClosed // half of it goes after the other side's FIN
					}
					from.Write(want[at : at+n])
					at += n
				}
				if first {
					from.CloseWrite()
					close(firstClosed)
					return
				}
				<-firstClosed
				from.CloseWrite()
			}()
			go func() {
				defer wg.Done()
				to.SetReadDeadline(time.Now().Add(5 * time.Second))
				got, err := io.ReadAll(to)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes of %d: %v", len(got), len(want), err)
				}
			}()
		}
		side(appOut, upOut, sizes.Draw(r, "up"), appFirst)
		side(upOut, appOut, sizes.Draw(r, "down"), !appFirst)
		wg.Wait()
		wait(t, done)
		for _, c := range []*net.TCPConn{appOut, upOut} {
			c.Close()
		}
	})
}

func TestResetBothWays(t *testing.T) {
	for _, c := range []struct{ hidden, fromApp bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		h := handler(t, nil)
		far := make(chan *net.TCPConn, 1)
		target := serve(t, func(c *net.TCPConn) {
			c.Read(make([]byte, 1)) // the flow is set up
			far <- c
			time.Sleep(200 * time.Millisecond)
		})
		app, in := pair(t)
		p := &pending{conn: in}
		if c.hidden {
			p.conn = opaque{in}
		}
		done := carry(h, t.Context(), tcpFlow(flow.TargetOf(target)), p)
		app.Write([]byte("x"))
		a, b := <-far, app
		if c.fromApp {
			a, b = b, a
		}
		a.SetLinger(0)
		a.Close()
		b.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%+v: %v", c, err)
		}
		wait(t, done)
	}
}

func TestKillAndCancel(t *testing.T) {
	h := handler(t, nil)
	target := serve(t, echo)
	for _, kill := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		app, in := pair(t)
		f := tcpFlow(flow.TargetOf(target))
		done := carry(h, ctx, f, &pending{conn: in})
		app.Write([]byte("x"))
		app.Read(make([]byte, 1))
		if kill && !h.Kill(f.ID) {
			t.Error("no such flow")
		}
		if !kill {
			cancel()
		}
		wait(t, done)
		if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("kill %v: %v", kill, err)
		}
		cancel()
	}
	if h.Kill(1 << 60) {
		t.Error("killed nothing")
	}
}

func TestVerdicts(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := flow.AddrPortOf(ln.Addr())
	ln.Close()
	set, err := rules.Compile([]rules.Rule{
		{Domain: []string{"blocked.example"}, Via: "block"},
		{Domain: []string{"nowhere.example"}, Via: "nosuch"},
		{Domain: []string{"named.example"}, Via: "other"},
	})
	if err != nil {
		t.Fatal(err)
	}
	target := serve(t, echo)
	dead := newUpstream(t, "http://"+closed.String(), upstream.Options{})
	dead.SetEarly(upstream.EarlyRefuses)
	var observed atomic.Pointer[error]
	var held atomic.Bool
	h := handler(t, func(o *Options) {
		o.Rules = set
		direct := o.Direct
		o.Current = func() *upstream.Upstream { return dead }
		o.Named = func(name string) *upstream.Upstream {
			if name == "other" {
				return direct
			}
			return nil
		}
		o.Local = func(_ string, a netip.Addr) bool { return a.IsLoopback() }
		o.Resolve = func(a netip.Addr) (string, bool) {
			switch a.String() {
			case "198.18.1.1":
				return "named.example", true
			case "198.18.1.2":
				return "", true
			}
			return "", false
		}
		o.Blocked = held.Load
		o.Observe = func(_ *upstream.Upstream, err error) { observed.Store(&err) }
	})
	try := func(tgt flow.Target) *pending {
		app, in := pair(t)
		p := &pending{conn: in}
		f := tcpFlow(tgt)
		done := carry(h, t.Context(), f, p)
		app.CloseWrite()
		wait(t, done)
		app.Close()
		return p
	}
	name := func(n string) flow.Target { return flow.Target{Name: n, Port: target.Port()} }
	for what, c := range map[string]struct {
		t    flow.Target
		want flow.Reason // 0 is carried
	}{
		"block":           {name("blocked.example"), flow.Forbidden},
		"unknown name":    {name("nowhere.example"), flow.Forbidden},
		"via":             {name("named.example"), 0},
		"lan":             {flow.TargetOf(target), 0},
		"fake":            {flow.Target{Addr: netip.MustParseAddr("198.18.1.1"), Port: target.Port()}, 0},
		"forgotten fake":  {flow.Target{Addr: netip.MustParseAddr("198.18.1.2"), Port: 1}, flow.Unreachable},
		"upstream is off": {name("other.example"), flow.Refused},
	} {
		if p := try(c.t); p.rejected != c.want || p.accepted != (c.want == 0) {
			t.Errorf("%s: rejected %v, accepted %v", what, p.rejected, p.accepted)
		}
	}
	if e := h.LastError("other.example"); !strings.Contains(e, "refused") || h.LastError("named.example") != "" {
		t.Errorf("last error %q", e)
	}
	if c := h.Counters(); c.Total != 7 || c.Blocked != 1 || c.Refused != 3 {
		t.Errorf("%+v", c)
	}
	try(name("other.example"))
	var e *upstream.Error
	if err := *observed.Load(); !errors.As(err, &e) || e.Kind != upstream.Refused {
		t.Errorf("observed %v", err)
	}
	held.Store(true)
	if p := try(name("named.example")); p.rejected != flow.Forbidden {
		t.Errorf("blocked: %v", p.rejected)
	}
}

func TestAppGoneClosesUpstream(t *testing.T) {
	gone := make(chan error, 1)
	target := serve(t, func(c *net.TCPConn) { _, err := c.Read(make([]byte, 1)); gone <- err })
	h := handler(t, nil)
	_, in := pair(t)
	wait(t, carry(h, t.Context(), tcpFlow(flow.TargetOf(target)), &pending{conn: in, fail: errors.New("gone")}))
	if err := <-gone; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the target saw %v", err)
	}
}

func TestLastErrorsBounded(t *testing.T) {
	var e lastErrors
	for i := range 3 * maxErrors {
		e.put(string(rune('a'+i%26))+strings.Repeat("x", i), "why")
	}
	if e.order.Len() != maxErrors || len(e.byHost) != maxErrors {
		t.Errorf("%d kept", e.order.Len())
	}
}

func benchmarkRelay(b *testing.B, hide bool) {
	h := handler(b, nil)
	app, appIn := pair(b)
	upIn, up := pair(b)
	var a, u flow.StreamConn = appIn, upIn
	if hide {
		a, u = opaque{a}, opaque{u}
	}
	done := make(chan struct{})
	go func() { defer close(done); h.relay(b.Context(), &live{sum: &h.viaBytes}, a, u) }()
	go func() {
		buf := make([]byte, 256<<10)
		for range b.N {
			up.Write(buf)
		}
		up.CloseWrite()
	}()
	b.SetBytes(256 << 10)
	b.ResetTimer()
	buf := make([]byte, 256<<10)
	for {
		if _, err := app.Read(buf); err != nil {
			break
		}
	}
	app.Close()
	<-done
}

func BenchmarkRelaySplice(b *testing.B)   { benchmarkRelay(b, false) }
func BenchmarkRelayBuffered(b *testing.B) { benchmarkRelay(b, true) }

// TestCarriesUDP: a local SOCKS5 app is promised UDP where there is a way for
// it, the default one or a rule's.
func TestCarriesUDP(t *testing.T) {
	none := newUpstream(t, "http://127.0.0.1:1", upstream.Options{})
	rule := func(via string) *rules.Set {
		set, err := rules.Compile([]rules.Rule{{Domain: []string{"a.example"}, Via: via}})
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	for name, c := range map[string]struct {
		change func(o *Options)
		want   bool
	}{
		"direct":             {func(o *Options) {}, true},
		"upstream without":   {func(o *Options) { o.Current = func() *upstream.Upstream { return none } }, false},
		"policy block":       {func(o *Options) { o.UDP = UDPBlock }, false},
		"policy direct":      {func(o *Options) { o.UDP, o.Current = UDPDirect, func() *upstream.Upstream { return none } }, true},
		"block, rule direct": {func(o *Options) { o.UDP, o.Rules = UDPBlock, rule("direct") }, true},
		"block, rule block":  {func(o *Options) { o.UDP, o.Rules = UDPBlock, rule("block") }, false},
		"block, rule without": {func(o *Options) {
			o.UDP, o.Rules, o.Named = UDPBlock, rule("x"), func(string) *upstream.Upstream { return none }
		}, false},
		"block, rule with": {func(o *Options) {
			o.UDP, o.Rules, o.Named = UDPBlock, rule("x"), func(string) *upstream.Upstream { return o.Direct }
		}, true},
	} {
		if got := handler(t, c.change).CarriesUDP(t.Context()); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
