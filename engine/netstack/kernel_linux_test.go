package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

// localHandler carries every flow to the port of the same number on loopback.
type localHandler struct {
	reject  func(flow.Flow) flow.Reason // nil, or 0: carry it
	delay   time.Duration               // before a stream is dialled
	streams atomic.Int64
	noUDP   bool
}

func loopback(a netip.Addr) string {
	if a.Is6() {
		return "::1"
	}
	return "127.0.0.1"
}

func (h *localHandler) HandleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	h.streams.Add(1)
	if h.reject != nil {
		if r := h.reject(f); r != 0 {
			p.Reject(r)
			return
		}
	}
	time.Sleep(h.delay)
	up, err := net.Dial("tcp", net.JoinHostPort(loopback(f.Dst.Addr()), fmt.Sprint(f.Dst.Port())))
	if err != nil {
		p.Reject(flow.Refused)
		return
	}
	defer up.Close()
	app, err := p.Accept()
	if err != nil {
		return
	}
	defer app.Close()
	stop := context.AfterFunc(ctx, func() { app.Close(); up.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { relayTo(up.(*net.TCPConn), app.(*net.TCPConn)) })
	both.Go(func() { relayTo(app.(*net.TCPConn), up.(*net.TCPConn)) })
	both.Wait()
}

// relayTo copies until src ends; a reset is passed on as a reset.
func relayTo(dst, src *net.TCPConn) {
	_, err := io.Copy(dst, src)
	for b := make([]byte, 1); err == nil; { // splice(2) takes an urgent byte for the end
		if _, err = src.Read(b); err == nil {
			_, _ = dst.Write(b)
			_, err = io.Copy(dst, src)
		}
	}
	if errors.Is(err, syscall.ECONNRESET) {
		dst.SetLinger(0)
		dst.Close()
		return
	}
	dst.CloseWrite()
}

func (h *localHandler) HandlePackets(ctx context.Context, f flow.Flow, app net.PacketConn) {
	defer app.Close()
	stop := context.AfterFunc(ctx, func() { app.Close() })
	defer stop()
	buf := make([]byte, 65536)
	up, err := net.ListenPacket("udp", net.JoinHostPort(loopback(f.Dst.Addr()), "0"))
	if err != nil {
		return
	}
	defer up.Close()
	var back sync.WaitGroup
	defer back.Wait()
	defer up.Close()
	var last atomic.Value
	back.Go(func() {
		b := make([]byte, 65536)
		for {
			n, _, err := up.ReadFrom(b)
			if err != nil {
				return
			}
			app.WriteTo(b[:n], last.Load().(net.Addr))
		}
	})
	for {
		n, to, err := app.ReadFrom(buf)
		if err != nil {
			return
		}
		if h.noUDP {
			app.(flow.Refuser).Refuse(flow.AddrPortOf(to))
			continue
		}
		last.Store(to)
		ap := flow.AddrPortOf(to)
		dst := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(loopback(ap.Addr())), ap.Port()))
		up.WriteTo(buf[:n], dst)
	}
}

// kernelRig is a running kernel path; the test's process is the apps.
type kernelRig struct {
	*kernel
	handler *localHandler
}

func startKernel(t testing.TB, h *localHandler) *kernelRig {
	t.Helper()
	return startKernelMTU(t, h, 1500)
}

func startKernelMTU(t testing.TB, h *localHandler, mtu int) *kernelRig {
	t.Helper()
	before := goleak.IgnoreCurrent()
	d := openTUN(t, "kp0", 2, mtu)
	s, err := New(Options{Device: d, Stack: "kernel", MTU: mtu, Handler: h,
		Addr4: netip.MustParsePrefix("198.18.0.1/15"),
		Addr6: netip.MustParsePrefix("fd61:746c:616e:7469::1/64"),
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if s.Path() != "kernel" {
		t.Fatalf("path %q", s.Path())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
		goleak.VerifyNone(t, before)
	})
	return &kernelRig{kernel: s.carrier.(*kernel), handler: h}
}

var faraway = []string{"203.0.113.7", "2001:db8::7"}

// serve listens on loopback in both families and runs f for every connection.
func serve(t testing.TB, f func(*net.TCPConn)) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	l6, err := net.Listen("tcp", "[::1]:"+port)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, l := range []net.Listener{l, l6} {
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { defer c.Close(); f(c.(*net.TCPConn)) })
			}
		})
	}
	t.Cleanup(func() { l.Close(); l6.Close(); wg.Wait() })
	return port
}

func dial(t testing.TB, host, port string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func TestKernelTCP(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	startKernel(t, &localHandler{})
	echo := serve(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, host := range faraway {
		t.Run("byte exact "+host, func(t *testing.T) { testByteExact(t, host, echo) })
		t.Run("half close "+host, func(t *testing.T) { testHalfClose(t, host) })
		t.Run("urgent "+host, func(t *testing.T) { testUrgent(t, host) })
		t.Run("server resets "+host, func(t *testing.T) { testServerResets(t, host) })
		t.Run("refused "+host, func(t *testing.T) { testRefused(t, host) })
		t.Run("source port reuse "+host, func(t *testing.T) { testPortReuse(t, host, echo) })
	}
	t.Run("2000 parallel", func(t *testing.T) { testParallel(t, faraway[0], echo) })
}

// testByteExact sends 64 MiB there and back.
func testByteExact(t *testing.T, host, port string) {
	const size = 64 << 20
	c := dial(t, host, port)
	sent, got := sha256.New(), sha256.New()
	go func() {
		io.Copy(io.MultiWriter(c, sent), io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
		c.CloseWrite()
	}()
	n, err := io.Copy(got, c)
	if err != nil || n != size {
		t.Fatalf("%d bytes of %d came back: %v", n, size, err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Error("the bytes are not those that were sent")
	}
}

func testHalfClose(t *testing.T, host string) {
	port := serve(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c) // ends when the app closes its side
		c.Write([]byte(strings.ToUpper(string(b))))
	})
	c := dial(t, host, port)
	c.Write([]byte("half"))
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "HALF" {
		t.Errorf("got %q, %v", b, err)
	}
}

func testServerResets(t *testing.T, host string) {
	port := serve(t, func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0) })
	c := dial(t, host, port)
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
}

func testRefused(t *testing.T, host string) {
	start := time.Now()
	_, err := net.DialTimeout("tcp", net.JoinHostPort(host, "1"), 5*time.Second)
	if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > 5*time.Second {
		t.Errorf("dial: %v after %v, want refused at once", err, time.Since(start))
	}
}

// testPortReuse connects from one source port to many destinations, then again
// to the first one.
func testPortReuse(t *testing.T, host, port string) {
	other := map[string]string{"203.0.113.7": "198.51.100.9", "2001:db8::7": "2001:db8::9"}[host]
	from := &net.TCPAddr{Port: 33333}
	d := net.Dialer{LocalAddr: from, Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	var conns []net.Conn
	for _, to := range []string{host, other, host} {
		if len(conns) == 2 { // the first ends by reset: its port is free at once
			conns[0].(*net.TCPConn).SetLinger(0)
			conns[0].Close()
		}
		c, err := d.Dial("tcp", net.JoinHostPort(to, port))
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for i, c := range conns[1:] {
		msg := fmt.Sprintf("connection %d", i)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write([]byte(msg))
		b := make([]byte, len(msg))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != msg {
			t.Errorf("got %q, %v, want %q", b, err, msg)
		}
	}
}

func testParallel(t *testing.T, host, port string) {
	var wg sync.WaitGroup
	var failed atomic.Int64
	for i := range 2000 {
		wg.Go(func() {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 20*time.Second)
			if err != nil {
				t.Log(err)
				failed.Add(1)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			msg := fmt.Appendf(nil, "message of connection %d", i)
			c.Write(msg)
			b := make([]byte, len(msg))
			if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, msg) {
				t.Logf("got %q, %v", b, err)
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of 2000 connections failed", n)
	}
}

func TestKernelReject(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := &localHandler{reject: func(f flow.Flow) flow.Reason { return flow.Reason(f.Dst.Port() - 1000) }}
	rig := startKernel(t, h)
	for _, host := range faraway {
		for reason, want := range map[flow.Reason]error{
			flow.Refused: syscall.ECONNREFUSED, flow.Forbidden: syscall.ECONNREFUSED,
			flow.TimedOut: syscall.ECONNREFUSED, flow.Unreachable: syscall.EHOSTUNREACH,
		} {
			start := time.Now()
			_, err := net.DialTimeout("tcp", net.JoinHostPort(host, fmt.Sprint(1000+int(reason))), 5*time.Second)
			if !errors.Is(err, want) || time.Since(start) > 5*time.Second {
				t.Errorf("%s %v: %v after %v, want %v at once", host, reason, err, time.Since(start), want)
			}
		}
	}
	// The app knows before the handler has come back.
	for end := time.Now().Add(10 * time.Second); rig.tcp.count.Load()+rig.pending.Load() != 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := rig.tcp.count.Load(); n != 0 {
		t.Errorf("%d flows are left", n)
	}
	if n := rig.pending.Load(); n != 0 {
		t.Errorf("%d handshakes are left", n)
	}
}

// TestKernelHeld checks that a SYN repeated while the handler thinks opens no
// second flow.
func TestKernelHeld(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := &localHandler{delay: 1500 * time.Millisecond} // the SYN is repeated after 1 s
	startKernel(t, h)
	port := serve(t, func(c *net.TCPConn) { io.Copy(c, c) })
	c := dial(t, faraway[0], port)
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if n := h.streams.Load(); n != 1 {
		t.Errorf("the handler saw %d flows, want 1", n)
	}
}

// TestKernelOldConnection checks that a connection from before the start fails
// at once rather than after minutes.
func TestKernelOldConnection(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	sh(t, `ip link set lo up; ip addr add 203.0.113.7/32 dev lo; ip addr add 198.18.0.1/32 dev lo`)
	l, err := net.Listen("tcp", "203.0.113.7:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("198.18.0.1")}}
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sh(t, `ip addr del 203.0.113.7/32 dev lo; ip addr del 198.18.0.1/32 dev lo`)
	startKernel(t, &localHandler{})
	c.SetDeadline(time.Now().Add(3 * time.Second))
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
}

// testUrgent: an urgent byte does not vanish from the stream.
func testUrgent(t *testing.T, host string) {
	got := make(chan string, 1)
	port := serve(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	c := dial(t, host, port)
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ctlErr := rc.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("ab!"), unix.MSG_OOB, nil) })
	if err = errors.Join(ctlErr, err); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("cd"))
	_ = c.CloseWrite()
	if s := <-got; s != "ab!cd" {
		t.Errorf("%q arrived", s)
	}
}
