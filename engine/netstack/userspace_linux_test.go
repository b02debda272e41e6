package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// The userspace path against this machine's kernel, through a real TUN.
func TestUserspaceRealTUN(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dev, err := tun.CreateTUN("us0", 1500)
	if err != nil {
		t.Fatal(err)
	}
	var served atomic.Int64
	h := gvisorHandler{packets: echoPackets, stream: func(_ context.Context, f flow.Flow, p flow.Pending) {
		if f.Dst.Port() == 81 {
			p.Reject(flow.Refused)
			return
		}
		c, err := p.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if f.Dst.Port() == 80 { // quick: we close first
			served.Add(1)
			io.WriteString(c, "x")
			return
		}
		io.Copy(c, c)
	}}
	s, err := New(Options{
		Device: dev, Stack: "userspace", MTU: 1500, Handler: h, Log: slog.New(slog.DiscardHandler),
		Addr4: netip.MustParsePrefix("198.18.0.1/15"), Addr6: netip.MustParsePrefix("fd61:746c:616e:7469::1/64"),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	sh(t, `ip link set lo up
		ip addr add 198.18.0.1/15 dev us0
		ip -6 addr add fd61:746c:616e:7469::1/64 dev us0 nodad
		ip link set us0 up
		ip route add default dev us0
		ip -6 route add default dev us0
		echo 32768 33767 > /proc/sys/net/ipv4/ip_local_port_range`)

	for _, host := range []string{"203.0.113.7", "2001:db8::7"} {
		sent := randomBytes(9, 32<<20/slower)
		c, err := net.Dial("tcp", net.JoinHostPort(host, "443"))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		begin := time.Now()
		back, err := exchange(c.(*net.TCPConn), sent)
		if err != nil || !bytes.Equal(back, sent) {
			t.Errorf("%s: %d of %d bytes came back, %v", host, len(back), len(sent), err)
		}
		t.Logf("%s: %d MiB there and back in %s", host, len(sent)>>20, time.Since(begin).Round(time.Millisecond))
		c.Close()

		if _, err := net.DialTimeout("tcp", net.JoinHostPort(host, "81"), 3*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v; want a refusal", host, err)
		}
		u, err := net.Dial("udp", net.JoinHostPort(host, "9"))
		if err != nil {
			t.Fatal(err)
		}
		u.SetDeadline(time.Now().Add(3 * time.Second))
		buf := make([]byte, 65535)
		for _, size := range []int{1, 1472, 1473, 20000} {
			u.Write(sent[:size])
			if n, err := u.Read(buf); err != nil || !bytes.Equal(buf[:n], sent[:size]) {
				t.Errorf("%s: %d of %d bytes of a datagram came back, %v", host, n, size, err)
			}
		}
		u.Close()
	}
	testQuickConnections(t, &served)
}

// testQuickConnections opens 12,000 from 1,000 source ports.
func testQuickConnections(t *testing.T, served *atomic.Int64) {
	begin := time.Now()
	var left atomic.Int64
	left.Store(12000 / slower)
	var apps sync.WaitGroup
	for range 16 {
		apps.Go(func() {
			for left.Add(-1) >= 0 && !t.Failed() {
				c, err := net.DialTimeout("tcp", "203.0.113.7:80", 5*time.Second)
				if err != nil {
					t.Errorf("after %d connections: %v", served.Load(), err)
					return
				}
				if in, err := io.ReadAll(c); err != nil || string(in) != "x" {
					t.Errorf("after %d connections: read %q, %v", served.Load(), in, err)
				}
				c.Close()
			}
		})
	}
	apps.Wait()
	t.Logf("%d connections in %s", served.Load(), time.Since(begin).Round(time.Millisecond))
}
