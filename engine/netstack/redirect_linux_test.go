package netstack

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

// redirectTo loads the rule that platform/linux has (its tests show that). What
// stays keeps open connections translated: the chain, and a rule that wants
// conntrack.
func redirectTo(t *testing.T, port uint16) {
	t.Helper()
	sh(t, fmt.Sprintf(`nft -f - <<N
table inet rd { chain output { type nat hook output priority -90; }; chain track { type filter hook output priority 0; }; }
flush chain inet rd output
flush chain inet rd track
add rule inet rd track ct state invalid counter
add rule inet rd output oifname kp0 meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn meta nfproto ipv4 dnat ip to 127.0.0.1-127.255.255.254:%[1]d
add rule inet rd output oifname kp0 meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn meta nfproto ipv6 redirect to :%[1]d
N`, port))
}

func redirectOff(t *testing.T) {
	t.Helper()
	sh(t, "nft flush chain inet rd output")
}

func startRedirect(t *testing.T, h *localHandler) *kernelRig {
	t.Helper()
	rig := startKernel(t, h)
	if rig.redirect == nil {
		t.Fatal("no redirect")
	}
	redirectTo(t, rig.redirect.port)
	return rig
}

func TestRedirectTCP(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	rig := startRedirect(t, &localHandler{})
	echo := serve(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, host := range faraway {
		t.Run("byte exact "+host, func(t *testing.T) { testByteExact(t, host, echo) })
		t.Run("half close "+host, func(t *testing.T) { testHalfClose(t, host) })
		t.Run("urgent "+host, func(t *testing.T) { testUrgent(t, host) })
		t.Run("server resets "+host, func(t *testing.T) { testServerResets(t, host) })
		t.Run("source port reuse "+host, func(t *testing.T) { testPortReuse(t, host, echo) })
		t.Run("dead "+host, func(t *testing.T) { testDeadAfterConnect(t, host) })
	}
	t.Run("2000 parallel", func(t *testing.T) { testParallel(t, faraway[0], echo) })
	if n := rig.tcp.count.Load(); n != 0 {
		t.Errorf("%d flows went by the translation", n)
	}
}

// testDeadAfterConnect: a flow that the handler rejects is reset.
func testDeadAfterConnect(t *testing.T, host string) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, "1"), 5*time.Second)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, want a reset", err)
	}
}

// stackOf is the Stack around a rig's carrier.
func (r *kernelRig) stack() *Stack { return &Stack{carrier: r.kernel, path: "kernel"} }

func TestRedirectProbe(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := &localHandler{}
	rig := startKernel(t, h)
	s := rig.stack()
	if s.RedirectPort() == 0 {
		t.Fatal("no port")
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.ProbeRedirect(t.Context()); err == nil || !strings.Contains(err.Error(), "not redirected") {
		t.Errorf("without the rule: %v", err)
	}
	redirectTo(t, s.RedirectPort())
	if err := s.ProbeRedirect(t.Context()); err != nil {
		t.Errorf("with the rule: %v", err)
	}
	sh(t, `nft -f - <<N
table inet host { chain input { type filter hook input priority 0; iifname "lo" tcp flags syn drop; }; }
N`)
	if err := s.ProbeRedirect(t.Context()); err == nil {
		t.Error("works although a firewall drops it")
	}
	if n := h.streams.Load(); n != 0 {
		t.Errorf("the handler saw %d flows", n)
	}
}

// TestRedirectStranger: whoever dials the port itself is refused.
func TestRedirectStranger(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := &localHandler{}
	rig := startRedirect(t, h)
	for _, host := range []string{"127.0.0.1", "::1", "198.18.0.1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(rig.redirect.port)))
		if err == nil {
			defer c.Close()
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want a reset", host, err)
		}
	}
	if n := h.streams.Load(); n != 0 {
		t.Errorf("the handler saw %d flows", n)
	}
}

// TestRedirectSwitches: connections survive that the rule comes and goes, and
// new ones take the other way.
func TestRedirectSwitches(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	rig := startKernel(t, &localHandler{})
	echo := serve(t, func(c *net.TCPConn) { io.Copy(c, c) })
	type open struct {
		conn    *net.TCPConn
		carrier string
	}
	var conns []open
	check := func(when string) {
		t.Helper()
		for i, o := range conns {
			msg := fmt.Sprintf("%s %d", when, i)
			o.conn.SetDeadline(time.Now().Add(10 * time.Second))
			o.conn.Write([]byte(msg))
			b := make([]byte, len(msg))
			if _, err := io.ReadFull(o.conn, b); err != nil || string(b) != msg {
				t.Errorf("%s: connection %d by %s: %q, %v", when, i, o.carrier, b, err)
			}
		}
	}
	for round := range 3 {
		for _, host := range faraway {
			before := rig.tcp.count.Load()
			conns = append(conns, open{dial(t, host, echo), "nat"})
			if rig.tcp.count.Load() == before {
				t.Errorf("round %d: %s was not translated", round, host)
			}
		}
		check("before")
		redirectTo(t, rig.redirect.port)
		for _, host := range faraway {
			before := rig.tcp.count.Load()
			conns = append(conns, open{dial(t, host, echo), "redirect"})
			if rig.tcp.count.Load() != before {
				t.Errorf("round %d: %s was not redirected", round, host)
			}
		}
		check("on")
		redirectOff(t)
		check("off")
	}
}

// TestRedirectEnds: the apps of redirected flows are told before the system
// ceases to translate; others live on.
func TestRedirectEnds(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	rig := startKernel(t, &localHandler{})
	echo := serve(t, func(c *net.TCPConn) { io.Copy(c, c) })
	stays := dial(t, faraway[0], echo)
	redirectTo(t, rig.redirect.port)
	ends := []*net.TCPConn{dial(t, faraway[0], echo), dial(t, faraway[1], echo)}
	for _, c := range ends {
		c.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	redirectOff(t)
	rig.stack().EndRedirected()
	sh(t, "nft delete table inet rd")
	for i, c := range ends {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("connection %d: %v, want its end", i, err)
		}
	}
	stays.Write([]byte("y"))
	if _, err := io.ReadFull(stays, make([]byte, 1)); err != nil {
		t.Errorf("a translated connection: %v", err)
	}
	rig.stack().EndRedirected() // twice is harmless
}

// TestRedirectedPending: exactly one of Accept and Reject counts.
func TestRedirectedPending(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (app net.Conn, a *redirected) {
		app, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { app.Close() })
		return app, &redirected{conn: c.(*net.TCPConn)}
	}
	app, a := pair()
	c, err := a.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, tcp := c.(*net.TCPConn); !tcp {
		t.Errorf("%T does not splice", c)
	}
	if _, err := a.Accept(); err == nil {
		t.Error("accepted twice")
	}
	a.Reject(flow.Refused)
	c.Write([]byte("x"))
	if _, err := io.ReadFull(app, make([]byte, 1)); err != nil {
		t.Error("Reject after Accept closed the connection")
	}
	c.Close()

	app, a = pair()
	a.Reject(flow.Unreachable)
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("rejected: %v", err)
	}
	if _, err := a.Accept(); err == nil {
		t.Error("accepted after Reject")
	}
}
