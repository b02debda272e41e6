package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// h2Proxy is a CONNECT proxy on net/http's HTTP/2 server.
func h2Proxy(t testing.TB, auth string, streams int) (addr string, change func(*Spec), conns *atomic.Int32) {
	t.Helper()
	conns = new(atomic.Int32)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Method != http.MethodConnect {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if auth != "" && r.Header.Get("Proxy-Authorization") != auth {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		out, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.Header().Set("Proxy-Status", "test; error=connection_refused")
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		go func() {
			io.Copy(out, r.Body)
			out.(*net.TCPConn).CloseWrite()
		}()
		b := make([]byte, 32<<10)
		for {
			n, err := out.Read(b)
			if n > 0 {
				if _, err := w.Write(b[:n]); err != nil {
					break
				}
				http.NewResponseController(w).Flush()
			}
			if errors.Is(err, syscall.ECONNRESET) {
				panic(http.ErrAbortHandler) // RST_STREAM
			}
			if err != nil {
				break
			}
		}
		// Returning is END_STREAM; net/http has no half-close of its own, so it
		// stops the client's direction too.
	}))
	s.EnableHTTP2 = true
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: streams}
	s.Config.ErrorLog = nil
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			conns.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	pool := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return s.Listener.Addr().String(), func(s *Spec) { s.CA = pool; s.SNI = "example.com" }, conns
}

// kinds are the upstreams that every behaviour must hold for.
func kinds(t *testing.T) map[string]*Upstream {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	withCA := func(s *Spec) { s.CA = pool }
	h2Addr, h2Change, _ := h2Proxy(t, "Basic dTrDpDpw", 0) // u:ä:p
	socks := &socksProxy{user: "u", pass: "p@:/"}
	return map[string]*Upstream{
		"direct":     open(t, "direct://", nil, Options{}),
		"connect":    open(t, "http://u:p%40%3A%2F@"+serve(t, func(c *net.TCPConn) { httpProxy("u:p@:/")(c) }).String(), nil, Options{}),
		"connecttls": open(t, "https://u:p@"+serve(t, overTLS(cert, httpProxy("u:p"), "http/1.1")).String(), withCA, Options{}),
		"h2":         open(t, "https://u:%C3%A4%3Ap@"+h2Addr, h2Change, Options{}),
		"socks5":     open(t, "socks5://u:p%40%3A%2F@"+serve(t, socks.handle).String(), nil, Options{}),
	}
}

func TestEchoHalfCloseEarly(t *testing.T) {
	target := flow.TargetOf(serve(t, echo))
	for kind, u := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			var tr Trace
			early := []byte("first bytes, ")
			c, err := u.DialStream(WithTrace(within(t, 5*time.Second), &tr), target, early)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, tcp := c.(*net.TCPConn); tcp != (kind == "direct" || kind == "connect" || kind == "socks5") {
				t.Errorf("%T: a relay cannot splice, or should not", c)
			}
			data := make([]byte, 3<<20)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			go func() {
				c.Write(data)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, append(early, data...)) {
				t.Fatalf("%d bytes came back of %d: %v", len(got), len(data)+len(early), err)
			}
			if tr.Dial == 0 || (tr.TLS > 0) != (kind == "connecttls" || kind == "h2") || kind != "direct" && tr.Connect == 0 {
				t.Errorf("trace %+v", tr)
			}
			if s := u.Stats(); s.Flows != 1 || s.Failures != 0 || kind != "direct" && s.RTT == 0 {
				t.Errorf("stats %+v", s)
			}
			if err := u.Check(within(t, 5*time.Second)); err != nil {
				t.Errorf("check: %v", err)
			}
		})
	}
}

func TestTargetRefuses(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := flow.TargetOf(flow.AddrPortOf(ln.Addr()))
	ln.Close()
	for kind, u := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			_, err := u.DialStream(within(t, 5*time.Second), closed, nil)
			var e *Error
			if !errors.As(err, &e) || e.Kind != Target || e.FromUpstream() || e.Reason != flow.Refused || e.Upstream != "test" {
				t.Fatalf("%#v", err)
			}
			if s := u.Stats(); s.Failures != 0 {
				t.Errorf("the target's failure counts against the upstream: %+v", s)
			}
		})
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	target := flow.TargetOf(serve(t, func(c *net.TCPConn) { io.WriteString(c, "220 hello\r\n") }))
	for kind, u := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			c, err := u.DialStream(within(t, 5*time.Second), target, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := io.ReadAll(c); string(got) != "220 hello\r\n" || err != nil {
				t.Fatalf("%q %v", got, err)
			}
		})
	}
}

func TestResetAndDeadline(t *testing.T) {
	target := flow.TargetOf(serve(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	}))
	for kind, u := range kinds(t) {
		if kind == "connect" || kind == "connecttls" || kind == "socks5" {
			continue // the test's own relays turn a reset into FIN
		}
		t.Run(kind, func(t *testing.T) {
			c, err := u.DialStream(within(t, 5*time.Second), target, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
			var ne net.Error
			if _, err := c.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
				t.Fatalf("deadline: %v", err)
			}
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("reset: %v", err)
			}
		})
	}
}

func TestWrongPassword(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	withCA := func(s *Spec) { s.CA = pool }
	h2Addr, h2Change, _ := h2Proxy(t, "Basic other", 0)
	socks := &socksProxy{user: "u", pass: "right"}
	const secret = "hunter2"
	for kind, u := range map[string]*Upstream{
		"connect":    open(t, "http://u:"+secret+"@"+serve(t, func(c *net.TCPConn) { httpProxy("u:right")(c) }).String(), nil, Options{}),
		"connecttls": open(t, "https://u:"+secret+"@"+serve(t, overTLS(cert, httpProxy("u:right"))).String(), withCA, Options{}),
		"h2":         open(t, "https://u:"+secret+"@"+h2Addr, h2Change, Options{}),
		"socks5":     open(t, "socks5://u:"+secret+"@"+serve(t, socks.handle).String(), nil, Options{}),
		"socks5none": open(t, "socks5://"+serve(t, socks.handle).String(), nil, Options{}),
	} {
		t.Run(kind, func(t *testing.T) {
			_, dialErr := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "example.com", Port: 443}, nil)
			for _, err := range []error{dialErr, u.Check(within(t, 5*time.Second))} {
				var e *Error
				if !errors.As(err, &e) || e.Kind != Auth || e.Hint != hintAuth {
					t.Fatalf("%v", err)
				}
				if strings.Contains(err.Error()+u.Stats().Error, secret) {
					t.Fatalf("the password shows: %v", err)
				}
			}
			if s := u.Stats(); s.Failures != 2 || s.Error == "" {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestTLSErrors(t *testing.T) {
	good, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	other, otherPool := certificate(t, time.Now().Add(time.Hour), "proxy.example")
	old, oldPool := certificate(t, time.Now().Add(-time.Hour), "127.0.0.1")
	for name, c := range map[string]struct {
		addr netip.AddrPort
		spec func(*Spec)
		hint string
	}{
		"unknown": {serve(t, overTLS(good, httpProxy(""))), nil, "unknown authority"},
		"name":    {serve(t, overTLS(other, httpProxy(""))), func(s *Spec) { s.CA = otherPool }, "another name"},
		"expired": {serve(t, overTLS(old, httpProxy(""))), func(s *Spec) { s.CA = oldPool }, "clock"},
		"plain":   {serve(t, func(c *net.TCPConn) { httpProxy("")(c); io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }), func(s *Spec) { s.CA = pool }, "http://"},
	} {
		t.Run(name, func(t *testing.T) {
			u := open(t, "https://"+c.addr.String(), c.spec, Options{})
			err := u.Check(within(t, 5*time.Second))
			var e *Error
			if !errors.As(err, &e) || e.Kind != TLS || !strings.Contains(e.Hint, c.hint) {
				t.Fatalf("%v, hint %q", err, e)
			}
		})
	}
	u := open(t, "https://"+serve(t, overTLS(other, httpProxy(""))).String(), func(s *Spec) { s.CA, s.SNI = otherPool, "proxy.example" }, Options{})
	if err := u.Check(within(t, 5*time.Second)); err != nil {
		t.Errorf("sni: %v", err)
	}
}

func TestRefusedUnreachableCancelled(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	addr := ln.Addr().String()
	ln.Close()
	expect := func(u *Upstream, want Kind) {
		t.Helper()
		_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "x", Port: 1}, nil)
		var e *Error
		if !errors.As(err, &e) || e.Kind != want || e.Hint == "" {
			t.Errorf("%v: want %v", err, want)
		}
	}
	for _, scheme := range []string{"http", "https", "socks5"} {
		expect(open(t, scheme+"://"+addr, nil, Options{}), Refused)
	}
	none := Options{Resolve: func(context.Context, string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}}
	expect(open(t, "http://proxy.invalid", nil, none), Unreachable)

	silent := serve(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	u := open(t, "http://"+silent.String(), nil, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err := u.DialStream(ctx, flow.Target{Name: "x", Port: 1}, nil)
	var e *Error
	if errors.As(err, &e) || !errors.Is(err, context.Canceled) || u.Stats().Failures != 0 {
		t.Errorf("cancelled: %v %+v", err, u.Stats())
	}
}

// TestSilence: a proxy may keep a CONNECT waiting, but not its own handshake.
func TestSilence(t *testing.T) {
	silent := serve(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) }).String()
	var wg sync.WaitGroup
	for scheme, alive := range map[string]bool{"http": true, "https": false, "socks5": false} {
		u := open(t, scheme+"://"+silent, nil, Options{})
		wg.Go(func() {
			begin := time.Now()
			err := u.Check(within(t, 10*time.Second))
			took := time.Since(begin)
			var e *Error
			switch {
			case alive && (err != nil || took > 2*time.Second):
				t.Errorf("%s: %v after %v", scheme, err, took)
			case !alive && (!errors.As(err, &e) || e.Kind != Timeout || e.Hint == "" || took > 6*time.Second):
				t.Errorf("%s: %v after %v, want a timeout", scheme, err, took)
			}
		})
	}
	wg.Wait()
}

func TestResolveAndRace(t *testing.T) {
	target := serve(t, echo)
	control := new(atomic.Int32)
	u := open(t, "direct://", nil, Options{
		Control: func(string, string, syscall.RawConn) error { control.Add(1); return nil },
		Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			if name != "two.example" {
				return nil, errors.New("unexpected name")
			}
			// Nothing listens at the first.
			return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1")}, nil
		},
	})
	c, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "two.example", Port: target.Port()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if control.Load() != 2 {
		t.Errorf("%d sockets went through Control", control.Load())
	}
	got := interleave([]netip.Addr{netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("1.1.1.2"), netip.MustParseAddr("2001::1"), netip.MustParseAddr("::ffff:1.1.1.1")})
	if len(got) != 3 || got[0].Is4() || got[1].String() != "1.1.1.1" {
		t.Errorf("order %v", got)
	}
}

func TestH2Sharing(t *testing.T) {
	addr, change, conns := h2Proxy(t, "", 10)
	u := open(t, "https://"+addr, change, Options{})
	target := flow.TargetOf(serve(t, echo))
	const flows = 45
	held := make([]flow.StreamConn, flows)
	var wg sync.WaitGroup
	for i := range flows {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := u.DialStream(within(t, 8*time.Second), target, []byte{byte(i)})
			if err != nil {
				t.Error(err)
				return
			}
			held[i] = c
		}()
	}
	wg.Wait()
	for i, c := range held {
		if c == nil {
			continue
		}
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != byte(i) {
			t.Errorf("stream %d gave %d: %v", i, b[0], err)
		}
		c.Close()
	}
	// Ten streams a session; the first flow may lose a race for a place.
	if n := conns.Load(); n < 5 || n > 6 {
		t.Errorf("%d connections", n)
	}
	if s := u.Stats(); s.Flows != flows || s.Reused < flows-6 {
		t.Errorf("stats %+v", s)
	}
}

func TestH2Only(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	insist := true
	u := open(t, "https://"+serve(t, overTLS(cert, httpProxy(""))).String(), func(s *Spec) { s.CA, s.HTTP2 = pool, &insist }, Options{})
	var e *Error
	if err := u.Check(within(t, 5*time.Second)); !errors.As(err, &e) || e.Kind != Protocol && e.Kind != TLS {
		t.Fatalf("%v", err)
	}
	// And without h2 offered the server of TestH2Sharing has to speak HTTP/1.1.
	seen := make(chan string, 1)
	addr := serve(t, func(c *net.TCPConn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}})
		if tc.Handshake() == nil {
			select {
			case seen <- tc.ConnectionState().NegotiatedProtocol:
			default: // of the pool's
			}
		}
	})
	never := false
	open(t, "https://"+addr.String(), func(s *Spec) { s.CA, s.HTTP2 = pool, &never }, Options{}).Check(within(t, 5*time.Second))
	if got := <-seen; got != "http/1.1" {
		t.Errorf("negotiated %q", got)
	}
}

func TestUDP(t *testing.T) {
	server := udpEcho(t)
	proxy := &socksProxy{zeroRelay: true}
	spoofed := make(chan struct{}, 100)
	proxy.spoof = func(relay *net.UDPConn, client netip.AddrPort) {
		relay.WriteToUDPAddrPort([]byte{0, 0, 7, 1, 1, 1, 1, 1, 0, 1, 'f'}, client) // a fragment
		relay.WriteToUDPAddrPort([]byte{0, 0, 0, 1, 1}, client)                     // cut
		other, _ := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		other.WriteToUDPAddrPort([]byte{0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 's'}, client) // from elsewhere: the kernel does not even let it in
		other.Close()
		spoofed <- struct{}{}
	}
	u := open(t, "socks5://"+serve(t, proxy.handle).String(), nil, Options{})
	direct := open(t, "direct://", nil, Options{Resolve: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{server.Addr()}, nil
	}})
	for name, u := range map[string]*Upstream{"socks5": u, "direct": direct} {
		t.Run(name, func(t *testing.T) {
			c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 65535+262)
			for _, size := range []int{0, 1, 1400, 9000, 60000} {
				data := bytes.Repeat([]byte{byte(size)}, size)
				for _, to := range []net.Addr{flow.UDPAddrOf(server), NameAddr{Name: "echo.example", Port: server.Port()}} {
					if _, err := c.WriteTo(data, to); err != nil {
						t.Fatal(size, err)
					}
					n, from, err := c.ReadFrom(b)
					if err != nil || !bytes.Equal(b[:n], data) || flow.AddrPortOf(from) != server {
						t.Fatalf("%d bytes: %d from %v: %v", size, n, from, err)
					}
				}
			}
			if name == "socks5" {
				if got, want := u.Stats().UDPBogus, uint64(2*len(spoofed)); got != want {
					t.Errorf("%d bogus datagrams counted of %d", got, want)
				}
				c.Close()
				for proxy.relays.Load() != 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	if open(t, "http://127.0.0.1:1", nil, Options{}).Packets() != nil {
		t.Error("CONNECT carries UDP")
	}
}

func TestUDPControlLost(t *testing.T) {
	control := make(chan *net.TCPConn, 1000)
	proxy := &socksProxy{}
	u := open(t, "socks5://"+serve(t, func(c *net.TCPConn) { control <- c; proxy.handle(c) }).String(), nil, Options{})
	c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.Target{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for len(control) > 0 { // the pool has some too
		(<-control).Close()
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := c.ReadFrom(make([]byte, 100)); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("%v", err)
	}
}

func TestRefusalNamesTheProxyAlone(t *testing.T) {
	u := open(t, "http://127.0.0.1:1", nil, Options{})
	_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "x.example", Port: 443}, nil)
	if err == nil || !strings.Contains(err.Error(), "dial tcp 127.0.0.1:1: ") {
		t.Errorf("%v", err)
	}
}
