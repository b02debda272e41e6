package route

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// socksProxy speaks SOCKS5 without authentication to names of any kind. It
// tells each request together with what came in the same read, and answers
// with code; then it is the target, served by then.
func socksProxy(t testing.TB, code byte, then func(c *net.TCPConn, early []byte)) (at string, requests chan []byte) {
	requests = make(chan []byte, 16)
	ap := serve(t, func(c *net.TCPConn) {
		b := make([]byte, 4096)
		if _, err := io.ReadFull(c, b[:3]); err != nil {
			return
		}
		_, _ = c.Write([]byte{5, 0})
		n, err := c.Read(b)
		if err != nil || n < 5 {
			return
		}
		head := 4 + 1 + int(b[4]) + 2 // VER CMD RSV ATYP, a name, the port
		requests <- append([]byte(nil), b[head:n]...)
		_, _ = c.Write([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0})
		if code == 0 {
			then(c, b[head:n])
		}
	})
	return "socks5://" + ap.String(), requests
}

const get = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"

func earlyHandler(t testing.TB, proxy string) *Handler {
	u := newUpstream(t, proxy, upstream.Options{})
	u.SetEarly(upstream.EarlyCarries)
	return handler(t, func(o *Options) { o.Current = func() *upstream.Upstream { return u } })
}

func TestFirstBytesRideAlong(t *testing.T) {
	proxy, requests := socksProxy(t, 0, func(c *net.TCPConn, early []byte) { _, _ = c.Write(early); _, _ = io.Copy(c, c) })
	h := earlyHandler(t, proxy)
	app, in := pair(t)
	_, _ = app.Write([]byte(get))
	p := &pending{conn: in}
	done := carry(h, t.Context(), tcpFlow(flow.Target{Name: "a.example", Port: 80}), p)
	if early := <-requests; string(early) != get {
		t.Errorf("with the request came %q", early)
	}
	_, _ = app.Write([]byte("more"))
	_ = app.CloseWrite()
	back, err := io.ReadAll(app)
	if string(back) != get+"more" || err != nil {
		t.Errorf("back came %q, %v", back, err)
	}
	wait(t, done)
	if c := h.Counters(); c.Early != 1 || c.Up != uint64(len(get)+4) || c.Down != c.Up {
		t.Errorf("%+v", c)
	}
}

// An app that waits for the server is not kept waiting, and the next one is
// not accepted before the server has answered.
func TestServerSpeaksFirst(t *testing.T) {
	proxy, requests := socksProxy(t, 0, func(c *net.TCPConn, _ []byte) { _, _ = c.Write([]byte("220 hello")) })
	h := earlyHandler(t, proxy)
	target := flow.Target{Name: "a.example", Port: 4000}
	for round := range 2 {
		app, in := pair(t)
		done := carry(h, t.Context(), tcpFlow(target), &pending{conn: in})
		if early := <-requests; len(early) != 0 {
			t.Errorf("with the request came %q", early)
		}
		_ = app.CloseWrite()
		if back, err := io.ReadAll(app); string(back) != "220 hello" || err != nil {
			t.Errorf("round %d: %q, %v", round, back, err)
		}
		wait(t, done)
		if !h.talkers.has(target) {
			t.Error("not learnt")
		}
	}
	if !h.talkers.has(flow.Target{Name: "b.example", Port: 22}) || h.talkers.has(flow.Target{Name: "b.example", Port: 443}) {
		t.Error("ports")
	}
	for i := range 3 * maxTalkers {
		h.talkers.add(flow.Target{Name: "x", Port: uint16(i)})
	}
	if len(h.talkers.targets) > maxTalkers {
		t.Errorf("%d are remembered", len(h.talkers.targets))
	}
}

// A dead target looks like a reset, and why it died is known.
func TestEarlyFailure(t *testing.T) {
	proxy, _ := socksProxy(t, 5, nil)
	h := earlyHandler(t, proxy)
	app, in := pair(t)
	_, _ = app.Write([]byte(get))
	p := &pending{conn: in}
	wait(t, carry(h, t.Context(), tcpFlow(flow.Target{Name: "a.example", Port: 80}), p))
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the app sees %v", err)
	}
	if !p.accepted || p.rejected != 0 {
		t.Errorf("accepted %v, rejected %v", p.accepted, p.rejected)
	}
	if why := h.LastError("a.example"); !strings.Contains(why, "connection refused") {
		t.Errorf("why is %q", why)
	}
	if c := h.Counters(); c.Refused != 1 || c.Open != 0 {
		t.Errorf("%+v", c)
	}
}
