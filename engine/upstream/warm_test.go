package upstream

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// moody is an HTTP or SOCKS5 proxy whose connections come to grief.
type moody struct {
	socks  bool
	idle   time.Duration // hangs up on who asks for nothing so long
	onUse  atomic.Bool   // hangs up on connections that were idle when they are used …
	reset  bool          // … by RST
	silent atomic.Bool   // does not answer on connections made before silence
	since  atomic.Int64  // Unix ns of the silence
	conns  atomic.Int32
	asked  atomic.Int32 // requests answered
}

func (m *moody) handle(c *net.TCPConn) {
	m.conns.Add(1)
	born := time.Now()
	if m.socks {
		hello := make([]byte, 3)
		if _, err := io.ReadFull(c, hello); err != nil {
			return
		}
		_, _ = c.Write([]byte{5, 0})
	}
	if m.idle > 0 {
		_ = c.SetReadDeadline(time.Now().Add(m.idle))
	}
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	if m.silent.Load() && born.UnixNano() < m.since.Load() {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	if m.onUse.Load() && time.Since(born) > 100*time.Millisecond {
		if m.reset {
			_ = c.SetLinger(0)
		}
		return
	}
	m.asked.Add(1)
	rest := b[:n]
	if m.socks {
		_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		rest = rest[min(len(rest), 4+1+int(b[4])+2):]
	} else {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		_, rest, _ = bytes.Cut(rest, []byte("\r\n\r\n"))
	}
	_, _ = c.Write(rest)
	echo(c)
}

// flowOn sends some bytes by u and expects them back.
func flowOn(t *testing.T, u *Upstream, early string) Trace {
	t.Helper()
	var tr Trace
	c, err := u.DialStream(WithTrace(within(t, 10*time.Second), &tr), flow.Target{Name: "x.example", Port: 80}, []byte(early))
	if err != nil {
		t.Fatalf("a dead warm connection is the app's error: %v", err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "and more")
	want := early + "and more"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("%q came back: %v", got, err)
	}
	return tr
}

// settle waits until n connections are idle in u's pool.
func settle(t *testing.T, u *Upstream, n int) {
	t.Helper()
	for range 1000 {
		if u.Stats().Warm >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the pool does not fill: %+v", u.Stats())
}

func moodyUpstreams(t *testing.T, change func(*moody)) map[string]*Upstream {
	us := map[string]*Upstream{}
	for scheme, socks := range map[string]bool{"http": false, "socks5": true} {
		m := &moody{socks: socks}
		change(m)
		us[scheme] = open(t, scheme+"://"+serve(t, m.handle).String(), nil, Options{})
	}
	return us
}

func TestWarmFlows(t *testing.T) {
	for name, u := range moodyUpstreams(t, func(*moody) {}) {
		if tr := flowOn(t, u, "x"); tr.Warm || tr.Reused || tr.Dial == 0 {
			t.Errorf("%s: the first flow: %+v", name, tr)
		}
		settle(t, u, coldStock)
		if tr := flowOn(t, u, "x"); !tr.Warm || !tr.Reused || tr.Dial != 0 || tr.Connect == 0 {
			t.Errorf("%s: the second flow: %+v", name, tr)
		}
		if s := u.Stats(); s.WarmHits != 1 || s.Reused != 1 || s.Flows != 2 {
			t.Errorf("%s: %+v", name, s)
		}
		u.Flush()
		flowOn(t, u, "x")
		settle(t, u, coldStock)
		if err := u.Close(); err != nil || u.Stats().Warm != 0 {
			t.Errorf("%s: closed, and %d are open", name, u.Stats().Warm)
		}
	}
}

// TestDeadWarm: however idle connections end, no flow notices (FT-22).
func TestDeadWarm(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*moody)
		after  func(*testing.T, *Upstream)
	}{
		"closed when idle": {func(m *moody) { m.idle = time.Second }, func(t *testing.T, _ *Upstream) { time.Sleep(1100 * time.Millisecond) }},
		"closed on use":    {func(m *moody) { m.onUse.Store(true) }, func(t *testing.T, _ *Upstream) { time.Sleep(200 * time.Millisecond) }},
		"reset on use": {func(m *moody) { m.onUse.Store(true); m.reset = true },
			func(t *testing.T, _ *Upstream) { time.Sleep(200 * time.Millisecond) }},
	} {
		for name, u := range moodyUpstreams(t, c.change) {
			t.Run(what+"/"+name, func(t *testing.T) {
				t.Parallel()
				flowOn(t, u, "first")
				for i := range 3 {
					settle(t, u, 2)
					c.after(t, u)
					flowOn(t, u, fmt.Sprintf("POST / %d", i))
				}
				if s := u.Stats(); s.Failures != 0 || s.Error != "" {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// TestBlackHole: connections that have died in silence cost a flow less than a
// time-out, and the others of their age are not waited for.
func TestBlackHole(t *testing.T) {
	for _, scheme := range []string{"http", "socks5"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			m := &moody{socks: scheme == "socks5"}
			u := open(t, scheme+"://"+serve(t, m.handle).String(), nil, Options{})
			for range 20 {
				flowOn(t, u, "x")
			}
			settle(t, u, coldStock)
			m.since.Store(time.Now().UnixNano())
			m.silent.Store(true)
			begin := time.Now()
			tr := flowOn(t, u, "x")
			for i := 0; tr.Warm && i < 3; i++ { // made a moment too late to be silent
				tr = flowOn(t, u, "x")
			}
			if tr.Warm || tr.Reused {
				t.Errorf("%+v", tr)
			}
			if d := time.Since(begin); d > handshakeTimeout/2 {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestRestart: a proxy that was restarted with a full pool.
func TestRestart(t *testing.T) {
	var mu sync.Mutex
	var conns []*net.TCPConn
	m := &moody{}
	u := open(t, "http://"+serve(t, func(c *net.TCPConn) {
		mu.Lock()
		conns = append(conns, c)
		mu.Unlock()
		m.handle(c)
	}).String(), nil, Options{})
	flowOn(t, u, "x")
	for range 3 {
		settle(t, u, coldStock)
		mu.Lock()
		for _, c := range conns {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		conns = nil
		mu.Unlock()
		flowOn(t, u, "POST once")
	}
	if s := u.Stats(); s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

// TestNothingUnsafeTwice: bytes that are not safe to repeat reach a target
// once, even where two connections are asked.
func TestNothingUnsafeTwice(t *testing.T) {
	t.Parallel()
	var bodies atomic.Int32
	var first atomic.Bool
	addr := serve(t, func(c *net.TCPConn) {
		b := make([]byte, 4096)
		if n, err := c.Read(b); err != nil || !bytes.HasSuffix(b[:n], []byte("\r\n\r\n")) {
			return
		}
		if first.CompareAndSwap(true, false) { // slow, but not dead
			time.Sleep(1500 * time.Millisecond)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		if n, err := c.Read(b); err == nil {
			bodies.Add(1)
			_, _ = c.Write(b[:n])
		}
		_, _ = io.Copy(io.Discard, c)
	})
	u := open(t, "http://"+addr.String(), nil, Options{})
	u.SetEarly(EarlyCarries)
	dial := func() {
		c, err := u.DialStream(within(t, 10*time.Second), flow.Target{Name: "x.example", Port: 80}, []byte("POST / HTTP/1.1\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	dial()
	settle(t, u, coldStock)
	before := bodies.Load()
	first.Store(true)
	dial()
	time.Sleep(100 * time.Millisecond)
	if n := bodies.Load() - before; n != 1 {
		t.Errorf("the request arrived %d times", n)
	}
}

// TestTLSWarm: connections of the pool are through TLS, with tickets.
func TestTLSWarm(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	var resumed atomic.Int32
	hangUp := make(chan struct{})
	hang := sync.OnceFunc(func() { close(hangUp) })
	defer hang()
	config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	addr := serve(t, func(c *net.TCPConn) {
		tc := tls.Server(c, config)
		if tc.Handshake() != nil {
			return
		}
		if tc.ConnectionState().DidResume {
			resumed.Add(1)
		}
		go func() {
			<-hangUp
			_ = tc.Close()
		}()
		httpProxy("")(tc)
		_ = tc.Close()
	})
	target := flow.TargetOf(serve(t, echo))
	u := open(t, "https://"+addr.String(), func(s *Spec) { s.CA = pool }, Options{})
	for i := range 5 {
		var tr Trace
		c, err := u.DialStream(WithTrace(within(t, 5*time.Second), &tr), target, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		_ = c.Close()
		if warm := i > 0; tr.Warm != warm || tr.Reused != warm || (tr.TLS > 0) == warm {
			t.Errorf("flow %d: %+v", i, tr)
		}
		settle(t, u, coldStock)
	}
	if resumed.Load() == 0 {
		t.Error("no ticket was used")
	}
	// What the proxy closes is seen behind the tickets that nobody has read.
	if !canPeek {
		return
	}
	w, err := u.streams.(*secure).dialHTTP1(within(t, 5*time.Second))
	if err != nil || !w.alive() {
		t.Fatal("not alive", err)
	}
	defer w.abort()
	hang()
	for i := 0; w.alive(); i++ {
		if i > 1000 {
			t.Fatal("still alive")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestCancelledFlowLeavesNothing(t *testing.T) {
	m := &moody{}
	u := open(t, "http://"+serve(t, m.handle).String(), nil, Options{})
	flowOn(t, u, "x")
	settle(t, u, coldStock)
	m.since.Store(time.Now().Add(time.Hour).UnixNano()) // also those that it has not looked at yet
	m.silent.Store(true)
	ctx := within(t, 100*time.Millisecond)
	begin := time.Now()
	_, err := u.DialStream(ctx, flow.Target{Name: "x.example", Port: 80}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != Timeout || time.Since(begin) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}
