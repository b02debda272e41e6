package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

// userspaceDevices are the devices that the path runs on, with their MTU: raw
// queues, and wireguard's tun.Device, which stands for those of other systems.
var userspaceDevices = map[string]func(t *testing.T) (tun.Device, int){
	"raw":      func(t *testing.T) (tun.Device, int) { return openTUN(t, "us0", 1, 65535), 65535 },
	"raw 1500": func(t *testing.T) (tun.Device, int) { return openTUN(t, "us0", 2, 1500), 1500 },
	"device": func(t *testing.T) (tun.Device, int) {
		dev, err := tun.CreateTUN("us0", 1500)
		if err != nil {
			t.Fatal(err)
		}
		setUpTUN(t, "us0", 1500)
		return dev, 1500
	},
}

// onEachDevice runs test in this process's namespace with a Stack on each kind
// of device.
func onEachDevice(t *testing.T, h flow.Handler, test func(t *testing.T, s *Stack)) {
	for name, open := range userspaceDevices {
		t.Run(name, func(t *testing.T) {
			dev, mtu := open(t)
			s, err := New(Options{
				Device: dev, Stack: "userspace", MTU: mtu, Handler: h, Log: slog.New(slog.DiscardHandler),
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
			test(t, s)
		})
	}
}

// The userspace path against this machine's kernel, through a real TUN.
func TestUserspaceRealTUN(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
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
		io.Copy(c, c)
	}}
	onEachDevice(t, h, testRealTUN)
}

func testRealTUN(t *testing.T, _ *Stack) {
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
		for _, size := range []int{1, 1472, 1473, 20000, 65488, maxPayload(netip.MustParseAddr(host).Is6())} {
			u.Write(sent[:size])
			if n, err := u.Read(buf); err != nil || !bytes.Equal(buf[:n], sent[:size]) {
				t.Errorf("%s: %d of %d bytes of a datagram came back, %v", host, n, size, err)
			}
		}
		u.Close()
	}
}

// Stacks like this one stop answering SYNs after some thousand quick
// connections. 1,000 source ports make each come round thirty times here, and no
// memory is left behind.
func TestUserspaceNoStall(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := gvisorHandler{stream: func(_ context.Context, f flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if f.Dst.Port() == 80 { // we close first: TIME-WAIT is on this side
			io.WriteString(c, "x")
			return
		}
		io.Copy(c, c)
	}}
	dev := openTUN(t, "us0", 1, 65535)
	u, err := newUserspace(Options{Device: dev, MTU: 65535, Handler: h, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "echo 32768 33767 > /proc/sys/net/ipv4/ip_local_port_range")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}()

	const rounds, each = 10, 3000 / slower
	var first, last uint64
	for round := range rounds {
		begin := time.Now()
		quickConnections(t, each)
		if t.Failed() {
			return
		}
		t.Logf("round %d: %d connections in %s", round, each, time.Since(begin).Round(time.Millisecond))
		switch round {
		case 1: // pools are full by now
			first = heapAfterTimeWait()
		case rounds - 1:
			last = heapAfterTimeWait()
		}
	}
	t.Logf("heap %d KiB after two rounds, %d KiB after all", first>>10, last>>10)
	if last > first+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes in %d connections", first, last, (rounds-2)*each)
	}
}

// quickConnections opens n connections with 16 workers, to a Handler that closes
// first and to one that closes last.
func quickConnections(t *testing.T, n int64) {
	var left atomic.Int64
	left.Store(n)
	var apps sync.WaitGroup
	for range 16 {
		apps.Go(func() {
			for i := left.Add(-1); i >= 0 && !t.Failed(); i = left.Add(-1) {
				if err := quickConnection(80 + i%2); err != nil {
					t.Errorf("%d connections before the end: %v", i, err)
				}
			}
		})
	}
	apps.Wait()
}

func quickConnection(port int64) error {
	host := "203.0.113.7"
	if port == 81 { // TIME-WAIT is on the app's side, for a minute
		host = fmt.Sprint("203.0.113.", rand.IntN(200))
	}
	c, err := net.DialTimeout("tcp", fmt.Sprint(host, ":", port), 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if port == 81 {
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		c.(*net.TCPConn).CloseWrite()
	}
	if in, err := io.ReadAll(c); err != nil || string(in) != "x" {
		return fmt.Errorf("read %q: %w", in, err)
	}
	return nil
}

func heapAfterTimeWait() uint64 {
	time.Sleep(timeWait + 100*time.Millisecond)
	runtime.GC()
	runtime.GC() // what sync.Pools held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
