package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// TestLost takes the upstream away while the service is on: flows are refused,
// nothing goes past it, and it is on again by itself once the upstream is back.
func TestLost(t *testing.T) {
	for _, scheme := range []proxy.Scheme{proxy.HTTP, proxy.HTTPS, proxy.SOCKS5} {
		t.Run(string(scheme), func(t *testing.T) { lost(t, scheme) })
	}
}

func lost(t *testing.T, scheme proxy.Scheme) {
	l := owned(t, "file")
	before := record(t, l)
	options := lab.ProxyOptions{Scheme: scheme, Port: 3128, User: "user", Password: "right"}
	p, err := l.StartProxy(options)
	if err != nil {
		t.Fatal(err)
	}
	at := capture.Tuple{Proto: "tcp", Dst: p.Addr()}
	toml := labDNS + fmt.Sprintf("[[upstream]]\nname = \"only\"\nurl = %q\n", p.URL())
	if scheme == proxy.HTTPS {
		toml += fmt.Sprintf("ca = %q\nsni = \"lab.test\"\n", l.CAFile())
	}
	router, err := l.Capture("")
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	if missing, err := l.PositiveControl(router); err != nil || len(missing) > 0 {
		t.Fatalf("the capture does not see %v (%v)", missing, err)
	}
	router.Reset()
	s := start(t, l, toml, "--up")
	s.await(api.On)
	works(t, l)
	established := dial(t, l, "tcp", fmt.Sprintf("example.test:%d", origin.PortEcho))

	p.Close()
	io.ReadAll(established) // ends with the upstream's connection, well before its deadline
	begin := time.Now()
	refusedAtOnce(t, l, "the first flow after the loss")
	st := s.await(api.Blocked)
	t.Logf("%s: blocked %v after the first flow that failed", scheme, time.Since(begin).Round(time.Millisecond))
	if st.Code != api.ErrRefused || st.Cause == "" || st.Hint == "" || !st.Protect.Blocking {
		t.Errorf("blocked with code %q, cause %q, hint %q, blocking %v", st.Code, st.Cause, st.Hint, st.Protect.Blocking)
	}
	for i := range 5 {
		refusedAtOnce(t, l, fmt.Sprintf("flow %d while blocked", i))
	}
	if _, err := l.UDPEcho(t.Context(), lab.Client, fmt.Sprintf("%s:%d", lab.Origin4(), origin.PortEcho), []byte("x")); err == nil {
		t.Error("UDP goes past the upstream")
	}
	if err := l.Probe(); err != nil {
		t.Fatal(err)
	}
	out, _, code := s.cli("status")
	if code != 3 {
		t.Errorf("status while blocked: exit code %d", code)
	}
	contains(t, out, "Blocked", "connection refused", "nothing listens there")
	contains(t, s.must("why", "example.test"), "all traffic is held now")

	p, err = l.StartProxy(options)
	if err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	s.await(api.On)
	took := time.Since(begin)
	t.Logf("%s: on again after %v", scheme, took.Round(time.Millisecond))
	if took > 8*time.Second {
		t.Errorf("on again only after %v", took)
	}
	works(t, l)
	if st := s.status(); st.Cause != "" || st.Hint != "" || st.Protect.Blocking {
		t.Errorf("on again with cause %q, hint %q, blocking %v", st.Cause, st.Hint, st.Protect.Blocking)
	}

	// And once more, with down while it is gone.
	p.Close()
	for begin := time.Now(); s.status().State != api.Blocked; time.Sleep(100 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("flows fail, but it is still %s", s.status().State)
		}
		refusedAtOnce(t, l, "a flow after the second loss")
	}
	// The local network stays reachable (protect.lan): its multicast and broadcast too.
	leaks, err := router.Leaks(at, lanTuple("224.0.0.251:5353"), lanTuple("239.255.255.250:1900"), lanTuple("10.77.0.255:137"))
	if err != nil {
		t.Error(err)
	}
	for _, k := range leaks {
		t.Errorf("leak: %v", k)
	}
	s.must("down")
	same(t, l, before, "after down while blocked")
	s.stop()
}

func lanTuple(dst string) capture.Tuple {
	return capture.Tuple{Proto: "udp", Dst: netip.MustParseAddrPort(dst)}
}

// refusedAtOnce wants a new flow to fail at once, as if nobody were there.
func refusedAtOnce(t *testing.T, l *lab.Lab, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	begin := time.Now()
	c, err := l.NS(lab.Client).DialContext(ctx, "tcp", net.JoinHostPort(lab.Origin4().String(), "80"))
	if err == nil {
		err = resetOf(c)
	}
	if err == nil || !isRefusal(err) || time.Since(begin) > 5*time.Second {
		t.Errorf("%s: %v after %v", what, err, time.Since(begin))
	}
}

// TestLostBeforeStart: once an upstream has worked, a start that cannot reach
// it holds the traffic instead of letting it past (the user has asked for it).
func TestLostBeforeStart(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	options := lab.ProxyOptions{Scheme: proxy.SOCKS5, Port: 1080, User: "user", Password: "right"}
	p, err := l.StartProxy(options)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, l, labDNS+fmt.Sprintf("[[upstream]]\nname = \"only\"\nurl = %q\n", p.URL()), "--up")
	s.await(api.On)
	s.kill()
	p.Close()
	s.launch()
	st := s.await(api.Blocked)
	if st.Code != api.ErrRefused || !strings.Contains(st.Cause, syscall.ECONNREFUSED.Error()) {
		t.Errorf("blocked with code %q, cause %q", st.Code, st.Cause)
	}
	refusedAtOnce(t, l, "a flow while blocked")
	if _, err := l.StartProxy(options); err != nil {
		t.Fatal(err)
	}
	s.await(api.On)
	works(t, l)
	s.stop()
	same(t, l, before, "after that")
}

// TestWayOut: while one upstream is gone, the user takes another.
func TestWayOut(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	a, b, toml := pair(t, l)
	s := start(t, l, toml, "--up")
	s.await(api.On)
	a.Close()
	refusedAtOnce(t, l, "a flow by a, which is gone")
	s.await(api.Blocked)
	s.fails(1, []string{"connection refused", "nothing listens there"}, "use", "http://203.0.113.20:3128")
	if st := s.status(); st.State != api.Blocked || st.Upstream.Name != "a" {
		t.Errorf("after a switch that failed: %s by %s", st.State, st.Upstream.Name)
	}
	s.must("use", "b")
	if st := s.await(api.On); st.Upstream.Name != "b" || st.Cause != "" {
		t.Errorf("on by %s, cause %q", st.Upstream.Name, st.Cause)
	}
	if _, byB := served(a, b, func() { works(t, l) }); byB != 1 {
		t.Errorf("%d flows by b", byB)
	}
	s.fails(1, []string{"connection refused"}, "use", "a")
	works(t, l)
	s.stop()
}

// TestPasswordChanged: the upstream is there but no longer takes the password.
func TestPasswordChanged(t *testing.T) {
	for _, scheme := range []proxy.Scheme{proxy.HTTP, proxy.SOCKS5} {
		t.Run(string(scheme), func(t *testing.T) {
			l := lab.NewTest(t, lab.Options{})
			p, err := l.StartProxy(lab.ProxyOptions{Scheme: scheme, User: "user", Password: "right"})
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, l, labDNS+fmt.Sprintf("[[upstream]]\nname = \"only\"\nurl = %q\n", p.URL()), "--up")
			s.await(api.On)
			p.SetFault(proxy.Auth)
			// Connections that were made ahead have logged in already.
			for end := time.Now().Add(20 * time.Second); s.status().State == api.On && time.Now().Before(end); {
				if f, err := l.Fetch(t.Context(), lab.Client, "http://example.test/proto", lab.FetchOptions{Args: []string{"--max-time", "5"}}); err == nil && f.Status != 200 {
					t.Errorf("status %d", f.Status)
				}
			}
			refusedAtOnce(t, l, "a flow once the password is wrong")
			st := s.await(api.Blocked)
			if st.Code != api.ErrAuth || st.Hint != "check user and password" {
				t.Errorf("blocked with code %q, cause %q, hint %q", st.Code, st.Cause, st.Hint)
			}
			// Tries are rare, so that no account is locked.
			tried := p.Counters.Accepted.Load()
			time.Sleep(3 * time.Second)
			if n := p.Counters.Accepted.Load() - tried; n > 1 {
				t.Errorf("%d tries with a wrong password in 3 s", n)
			}
			p.SetFault(proxy.None)
			s.must("up") // the user asks: at once
			works(t, l)
			s.stop()
		})
	}
}
