package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

// sinkProxy is a SOCKS5 proxy whose relay swallows what apps send and sends
// them what it is told to.
type sinkProxy struct {
	address string
	relay   *net.UDPConn
	got     atomic.Uint64
	wrong   atomic.Uint64
	client  atomic.Pointer[netip.AddrPort]
}

var sinkHead = []byte{0, 0, 0, 1, 203, 0, 113, 7, 1, 187} // 203.0.113.7:443

func startSinkProxy(t *testing.T) *sinkProxy {
	relay, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	roomy(t, relay)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &sinkProxy{address: l.Addr().String(), relay: relay}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				b := make([]byte, 10)
				_, e1 := io.ReadFull(c, b[:3])
				_, e2 := c.Write([]byte{5, 0})
				_, e3 := io.ReadFull(c, b)
				_, e4 := c.Write(binary.BigEndian.AppendUint16([]byte{5, 0, 0, 1, 127, 0, 0, 1}, flow.AddrPortOf(relay.LocalAddr()).Port()))
				if errors.Join(e1, e2, e3, e4) == nil {
					_, _ = c.Read(b)
				}
			})
		}
	})
	wg.Go(func() {
		b := make([]byte, 65535)
		for {
			n, from, err := relay.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			p.client.Store(&from)
			if n < len(sinkHead)+8 || !slices.Equal(b[:len(sinkHead)], sinkHead) {
				p.wrong.Add(1)
			}
			p.got.Add(1)
		}
	})
	t.Cleanup(func() { l.Close(); relay.Close(); wg.Wait() })
	return p
}

// roomy gives a test's socket a buffer that the test's own pauses do not fill.
func roomy(t *testing.T, c *net.UDPConn) {
	onDescriptor(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) })
}

func onDescriptor(t *testing.T, c *net.UDPConn, f func(fd int) error) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err == nil {
		ctlErr := rc.Control(func(fd uintptr) { err = f(int(fd)) })
		err = errors.Join(err, ctlErr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// socketDrops is what the kernel had no room for in c.
func socketDrops(t *testing.T, c *net.UDPConn) (n uint64) {
	onDescriptor(t, c, func(fd int) error {
		var info [9]uint32
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		n = uint64(info[8])
		if errno != 0 {
			return errno
		}
		return nil
	})
	return n
}

// pace calls send n times, about `per` times a second in bursts of a
// millisecond, and returns how many calls succeeded.
func pace(n, per int, send func(i int) error) (sent uint64) {
	begin := time.Now()
	for i := range n {
		if i%(per/1000) == 0 {
			time.Sleep(time.Until(begin.Add(time.Duration(i) * time.Second / time.Duration(per))))
		}
		if send(i) == nil {
			sent++
		}
	}
	return sent
}

// balance waits until as many have arrived or been counted as were sent.
func balance(t *testing.T, way string, sent uint64, sum func() (arrived, counted uint64)) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		arrived, counted := sum()
		if arrived+counted == sent {
			t.Logf("%s: %d sent, %d arrived, %d counted", way, sent, arrived, counted)
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s: %d sent, %d arrived, %d counted", way, sent, arrived, counted)
			return
		}
	}
}

// TestUDPFlood sends 100,000 datagrams a second for a second each way, through
// the device, the route and a SOCKS5 proxy: each one arrives or is counted once.
func TestUDPFlood(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	sink := startSinkProxy(t)
	spec, err := proxy.ParseURL("p", "socks5://"+sink.address)
	if err != nil {
		t.Fatal(err)
	}
	up, err := upstream.New(spec, upstream.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	h := route.New(route.Options{Current: func() *upstream.Upstream { return up }, Direct: up})
	k := startHandler(t, h)
	sh(t, "echo 1 > /proc/sys/net/ipv6/conf/kp0/disable_ipv6") // its multicast would be counted too

	app, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 443})
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	roomy(t, app)
	var down, wrong atomic.Uint64
	var reading sync.WaitGroup
	reading.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := app.Read(b)
			if err != nil {
				return
			}
			if n != 100 && n != 99 {
				wrong.Add(1)
			}
			down.Add(1)
		}
	})

	const each, rate = 100_000, 100_000
	data := make([]byte, 100)
	sent := pace(each, rate, func(i int) error { _, err := app.Write(data[:100-i%37/36]); return err })
	balance(t, "up", sent, func() (uint64, uint64) {
		link, err := netlink.LinkByName("kp0")
		if err != nil {
			t.Fatal(err)
		}
		st, c := k.counters.stats(), h.Counters()
		return c.UDPUp, link.Attrs().Statistics.TxDropped + st.UDPDropped + c.UDPLost + c.UDPBlocked
	})
	balance(t, "to the proxy", h.Counters().UDPUp, func() (uint64, uint64) { return sink.got.Load(), socketDrops(t, sink.relay) })

	message := append(slices.Clone(sinkHead), data...)
	to := *sink.client.Load()
	back := pace(each, rate, func(i int) error {
		_, err := sink.relay.WriteToUDPAddrPort(message[:len(message)-i%37/36], to)
		return err
	})
	// What the association's socket has dropped is counted at its end, which must
	// not come before it has taken the rest.
	for last, now := uint64(0), uint64(1); last != now; now = h.Counters().UDPDown {
		last = now
		time.Sleep(time.Second)
	}
	k.udp.each(func(_ tuple, s *udpSession) { s.Close() })
	balance(t, "down", back, func() (uint64, uint64) {
		c, st := h.Counters(), up.Stats()
		return c.UDPDown, st.UDPOverflow + st.UDPBogus + c.UDPLost
	})
	balance(t, "to the app", h.Counters().UDPDown, func() (uint64, uint64) { return down.Load(), socketDrops(t, app) })
	if sink.wrong.Load() != 0 || wrong.Load() != 0 {
		t.Errorf("%d and %d arrived mutilated", sink.wrong.Load(), wrong.Load())
	}
	app.Close()
	reading.Wait()
}

// echoHandler returns every burst to where it came from.
type echoHandler struct{ bursts, datagrams atomic.Int64 }

func (*echoHandler) HandleStream(_ context.Context, _ flow.Flow, p flow.Pending) {
	p.Reject(flow.Refused)
}

func (h *echoHandler) HandlePackets(ctx context.Context, _ flow.Flow, app net.PacketConn) {
	defer app.Close()
	defer context.AfterFunc(ctx, func() { app.Close() })()
	app.(flow.Pusher).Push(func(ms []flow.Datagram) int {
		h.bursts.Add(1)
		h.datagrams.Add(int64(len(ms)))
		done, _, _ := app.(flow.BatchSender).Send(ms)
		return done
	})
	b := make([]byte, 2048)
	for {
		n, to, err := app.ReadFrom(b)
		if err != nil {
			return
		}
		app.WriteTo(b[:n], to)
	}
}

// TestUDPSegments has an app send many datagrams in one call (UDP_SEGMENT): they
// pass the device together, both ways, and reach the app one by one.
func TestUDPSegments(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := &echoHandler{}
	k := startHandler(t, h)
	app, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 443})
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	app.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 2048)
	app.Write([]byte("first"))
	if n, err := app.Read(b); err != nil || string(b[:n]) != "first" {
		t.Fatal(string(b[:n]), err)
	}
	const size, count = 1000, 20
	control := make([]byte, unix.CmsgSpace(2))
	c := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], size)
	data := make([]byte, size*count-1)
	for i := range data {
		data[i] = byte(i / size)
	}
	if _, _, err := app.WriteMsgUDP(data, control, nil); err != nil {
		t.Skip("SKIPPED: this kernel has no UDP_SEGMENT:", err)
	}
	for i := range count {
		n, err := app.Read(b)
		if want := data[i*size : min((i+1)*size, len(data))]; err != nil || !slices.Equal(b[:n], want) {
			t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
		}
	}
	t.Logf("%d datagrams in %d bursts; one by one to apps: %v", h.datagrams.Load(), h.bursts.Load(), k.cutUDP.Load())
}

// startHandler runs the kernel path with a handler of the test's.
func startHandler(t *testing.T, h flow.Handler) *kernel {
	t.Helper()
	d := openTUN(t, "kp0", 2, 1500)
	s, err := New(Options{Device: d, Stack: "kernel", MTU: 1500, Handler: h,
		Addr4: netip.MustParsePrefix("198.18.0.1/15"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s.carrier.(*kernel)
}
