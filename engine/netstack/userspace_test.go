package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// gvisorHandler is a flow.Handler made of two functions.
type gvisorHandler struct {
	stream  func(context.Context, flow.Flow, flow.Pending)
	packets func(context.Context, flow.Flow, net.PacketConn)
}

func (h gvisorHandler) HandleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	h.stream(ctx, f, p)
}

func (h gvisorHandler) HandlePackets(ctx context.Context, f flow.Flow, app net.PacketConn) {
	h.packets(ctx, f, app)
}

var (
	app4    = netip.MustParseAddr("198.18.0.1")
	app6    = netip.MustParseAddr("fd61:746c:616e:7469::1")
	target4 = netip.MustParseAddrPort("203.0.113.7:443")
	target6 = netip.MustParseAddrPort("[2001:db8::7]:443")
)

const rigMTU = 1500

// userspaceRig is an app's own TCP/IP stack, joined to a running userspace path
// by a TUN in memory.
type userspaceRig struct {
	app *stack.Stack
	tun *tuntest.ChannelTUN
}

func newUserspaceRig(t *testing.T, h flow.Handler) *userspaceRig {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	rig := &userspaceRig{tun: tuntest.NewChannelTUN()}
	u, err := newUserspace(Options{Device: rig.tun.TUN(), MTU: rigMTU, Handler: h, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := u.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	pumps, stopPumps := context.WithCancel(context.Background())
	link := channel.New(4096, rigMTU, "")
	rig.app = newAppStack(t, link)
	running.Go(func() { rig.pumpOut(pumps, link) })
	running.Go(func() { rig.pumpIn(pumps, link) })
	t.Cleanup(func() {
		cancel()
		<-u.closed
		stopPumps()
		running.Wait()
		rig.app.Destroy()
	})
	return rig
}

func newAppStack(t *testing.T, link *channel.Endpoint) *stack.Stack {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.CreateNIC(1, link); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{app4, app6} {
		proto := header.IPv4ProtocolNumber
		if a.Is6() {
			proto = header.IPv6ProtocolNumber
		}
		addr := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(1, addr, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	return s
}

func (r *userspaceRig) pumpOut(ctx context.Context, link *channel.Endpoint) {
	for {
		pkt := link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		view := pkt.ToView()
		pkt.DecRef()
		select {
		case r.tun.Outbound <- view.AsSlice():
		case <-ctx.Done():
			return
		}
	}
}

func (r *userspaceRig) pumpIn(ctx context.Context, link *channel.Endpoint) {
	for {
		select {
		case p := <-r.tun.Inbound:
			proto := header.IPv4ProtocolNumber
			if p[0]>>4 == 6 {
				proto = header.IPv6ProtocolNumber
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
			link.InjectInbound(proto, pkt)
			pkt.DecRef()
		case <-ctx.Done():
			return
		}
	}
}

func fullAddress(ap netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := header.IPv4ProtocolNumber
	if ap.Addr().Is6() {
		proto = header.IPv6ProtocolNumber
	}
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}, proto
}

func (r *userspaceRig) dial(t *testing.T, to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	addr, proto := fullAddress(to)
	c, err := gonet.DialContextTCP(ctx, r.app, addr, proto)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c, nil
}

func (r *userspaceRig) mustDial(t *testing.T, to netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	c, err := r.dial(t, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// randomBytes are n bytes that are the same in every run.
func randomBytes(seed byte, n int) []byte {
	p := make([]byte, n)
	src := rand.NewChaCha8([32]byte{seed})
	src.Read(p)
	return p
}

// exchange sends out and returns all that comes back, both at the same time.
func exchange(c flow.StreamConn, out []byte) ([]byte, error) {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(out)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	in, err := io.ReadAll(c)
	return in, errors.Join(err, <-sent)
}

func TestUserspaceTCPCarriesBytesBothWays(t *testing.T) {
	up, down := randomBytes(1, 8<<20/slower), randomBytes(2, 8<<20/slower)
	for _, to := range []netip.AddrPort{target4, target6} {
		t.Run(to.String(), func(t *testing.T) {
			got := make(chan []byte, 1)
			rig := newUserspaceRig(t, gvisorHandler{stream: func(_ context.Context, f flow.Flow, p flow.Pending) {
				if f.Network != flow.TCP || f.Inbound != flow.TUN || f.Dst != to || f.Target != flow.TargetOf(to) ||
					f.ID == 0 || f.Start.IsZero() || (f.Src.Addr() != app4 && f.Src.Addr() != app6) || f.Src.Port() == 0 {
					t.Errorf("flow %+v", f)
				}
				c, err := p.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				in, err := exchange(c, down)
				if err != nil {
					t.Error(err)
				}
				got <- in
			}})
			back, err := exchange(rig.mustDial(t, to), up)
			if err != nil {
				t.Fatal(err)
			}
			if sha256.Sum256(back) != sha256.Sum256(down) {
				t.Errorf("app got %d bytes that differ from the %d sent", len(back), len(down))
			}
			if in := <-got; !bytes.Equal(in, up) {
				t.Errorf("handler got %d bytes that differ from the %d sent", len(in), len(up))
			}
		})
	}
}

func TestUserspaceHalfClose(t *testing.T) {
	answer := randomBytes(3, 1<<20)
	rig := newUserspaceRig(t, gvisorHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if in, err := io.ReadAll(c); err != nil || string(in) != "question" {
			t.Errorf("read %q, %v", in, err)
		}
		c.Write(answer) // after the app has closed its half
	}})
	back, err := exchange(rig.mustDial(t, target4), []byte("question"))
	if err != nil || !bytes.Equal(back, answer) {
		t.Errorf("got %d bytes, %v; want %d", len(back), err, len(answer))
	}
}

func TestUserspaceRefusal(t *testing.T) {
	tests := []struct {
		name   string
		stream func(context.Context, flow.Flow, flow.Pending)
	}{
		{"rejected", func(_ context.Context, _ flow.Flow, p flow.Pending) { p.Reject(flow.TimedOut) }},
		{"rejected twice", func(_ context.Context, _ flow.Flow, p flow.Pending) {
			p.Reject(flow.Refused)
			p.Reject(flow.Refused)
			if _, err := p.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept after reject: %v", err)
			}
		}},
		{"forgotten", func(context.Context, flow.Flow, flow.Pending) {}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			rig := newUserspaceRig(t, gvisorHandler{stream: test.stream})
			for _, to := range []netip.AddrPort{target4, target6} {
				begin := time.Now()
				c, err := rig.dial(t, to)
				if err == nil {
					c.Close()
				}
				if err == nil || !strings.Contains(err.Error(), "refused") {
					t.Errorf("dial %s: %v; want a refusal", to, err)
				}
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("refusal took %s", took)
				}
			}
		})
	}
}

func TestUserspaceHoldsTheSYN(t *testing.T) {
	const hold = 300 * time.Millisecond
	rig := newUserspaceRig(t, gvisorHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
		time.Sleep(hold)
		if c, err := p.Accept(); err == nil {
			c.Close()
		}
	}})
	begin := time.Now()
	rig.mustDial(t, target4)
	if took := time.Since(begin); took < hold {
		t.Errorf("connected after %s, before the handler had accepted", took)
	}
}

func TestUserspaceResetReachesTheApp(t *testing.T) {
	rig := newUserspaceRig(t, gvisorHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		io.ReadFull(c, make([]byte, 1)) // the app has seen the connection established
		c.(interface{ SetLinger(int) error }).SetLinger(0)
		c.Close()
	}})
	c := rig.mustDial(t, target4)
	io.WriteString(c, "x")
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v; want a reset", err)
	}
}

func TestUserspaceResetsUnknownSegments(t *testing.T) {
	rig := newUserspaceRig(t, gvisorHandler{})
	ack := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	src, dst := tcpip.AddrFrom4([4]byte{198, 18, 0, 9}), tcpip.AddrFrom4(target4.Addr().As4())
	ip, h := header.IPv4(ack), header.TCP(ack[header.IPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ack)), TTL: 64, Protocol: 6, SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	h.Encode(&header.TCPFields{SrcPort: 1, DstPort: 443, SeqNum: 7, AckNum: 9, DataOffset: 20, Flags: header.TCPFlagAck, WindowSize: 1})
	h.SetChecksum(^h.CalculateChecksum(header.PseudoHeaderChecksum(6, src, dst, header.TCPMinimumSize)))

	sniffed := make(chan header.TCPFlags, 1)
	rig.app.SetTransportProtocolHandler(tcp.ProtocolNumber, func(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		sniffed <- header.TCP(pkt.TransportHeader().Slice()).Flags()
		return true
	})
	rig.app.SetPromiscuousMode(1, true)
	rig.tun.Outbound <- ack
	select {
	case flags := <-sniffed:
		if !flags.Contains(header.TCPFlagRst) {
			t.Errorf("answer has flags %s; want a reset", flags)
		}
	case <-time.After(3 * time.Second):
		t.Error("no answer")
	}
}

// Other gVisor-based stacks stop answering SYNs after some thousand quick
// connections, once source ports come round (see forgetOldTuple). 1,000 ports make
// each come round four times here.
func TestUserspaceQuickConnections(t *testing.T) {
	const (
		connections = 4000
		workers     = 16
	)
	var served atomic.Int64
	rig := newUserspaceRig(t, gvisorHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close() // first, so that TIME-WAIT is on this side
		served.Add(1)
		io.WriteString(c, "x")
	}})
	if err := rig.app.SetPortRange(20000, 20999); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var left atomic.Int64
	left.Store(connections)
	var apps sync.WaitGroup
	for range workers {
		apps.Go(func() {
			for left.Add(-1) >= 0 && !t.Failed() {
				c, err := rig.dial(t, target4)
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
	if n := served.Load(); n < connections {
		t.Errorf("served %d of %d connections", n, connections)
	}
}

// A SYN for a connection that lives is its own sender's business: while it waits
// for a reset that does not come, others go on. 100 of them held them up for 10 s.
func TestUserspaceSYNOfLiveConnection(t *testing.T) {
	rig := newUserspaceRig(t, gvisorHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, struct{ io.Reader }{c})
	}})
	lives := rig.mustDial(t, target4)
	lives.Write([]byte("!")) // with its echo here, it is established on both sides
	if _, err := io.ReadFull(lives, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	src := flow.AddrPortOf(lives.LocalAddr())
	begin := time.Now()
	for range 100 {
		rig.tun.Outbound <- craft(app4.String(), target4.Addr().String(), protoTCP, tcpSegment(src.Port(), target4.Port(), 1, 0, tcpSYN, ""))[vnetBytes:]
	}
	if back, err := exchange(rig.mustDial(t, target4), []byte("hello")); err != nil || string(back) != "hello" {
		t.Errorf("another: %q, %v", back, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	time.Sleep(2 * resetWithin) // gVisor has the SYNs now
	if back, err := exchange(lives, []byte("hello")); err != nil || string(back) != "hello" {
		t.Errorf("the connection itself: %q, %v", back, err)
	}
}
