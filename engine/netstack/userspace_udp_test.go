package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// echoPackets answers every datagram from the address it was sent to.
func echoPackets(ctx context.Context, _ flow.Flow, app net.PacketConn) {
	defer app.Close()
	defer context.AfterFunc(ctx, func() { app.Close() })()
	buf := make([]byte, 65535)
	for {
		n, to, err := app.ReadFrom(buf)
		if err != nil {
			return
		}
		if _, err := app.WriteTo(buf[:n], to); err != nil {
			return
		}
	}
}

func (r *userspaceRig) listenUDP(t *testing.T, app netip.Addr) *gonet.UDPConn {
	t.Helper()
	local, proto := fullAddress(netip.AddrPortFrom(app, 0))
	c, err := gonet.DialUDP(r.app, &local, nil, proto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func TestUserspaceUDPEcho(t *testing.T) {
	rig := newUserspaceRig(t, gvisorHandler{packets: echoPackets})
	for _, end := range []struct {
		app netip.Addr
		to  netip.AddrPort
	}{{app4, target4}, {app6, target6}} {
		c := rig.listenUDP(t, end.app)
		for _, size := range []int{0, 1, 2, 512, 1452, 1472, 1473, 4000, 9001, 65507} {
			out := randomBytes(byte(size), size)
			if _, err := c.WriteTo(out, flow.UDPAddrOf(end.to)); err != nil {
				t.Fatalf("%s, %d bytes: %v", end.to, size, err)
			}
			in := make([]byte, 65535)
			n, from, err := c.ReadFrom(in)
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", end.to, size, err)
			}
			if !bytes.Equal(in[:n], out) || flow.AddrPortOf(from) != end.to {
				t.Errorf("%s, %d bytes: got %d bytes from %s", end.to, size, n, from)
			}
		}
	}
}

func TestUserspaceUDPIsOneSessionPerSocket(t *testing.T) {
	var flows atomic.Int64
	stranger := netip.MustParseAddrPort("192.0.2.99:9")
	rig := newUserspaceRig(t, gvisorHandler{packets: func(ctx context.Context, f flow.Flow, app net.PacketConn) {
		defer app.Close()
		defer context.AfterFunc(ctx, func() { app.Close() })()
		flows.Add(1)
		if f.Network != flow.UDP || f.Inbound != flow.TUN || f.Src.Addr() != app4 || flow.AddrPortOf(app.LocalAddr()) != f.Src {
			t.Errorf("flow %+v", f)
		}
		if _, err := app.WriteTo([]byte("x"), flow.UDPAddrOf(target6)); err == nil {
			t.Error("an IPv6 answer to an IPv4 app was not refused")
		}
		buf := make([]byte, 100)
		for {
			n, to, err := app.ReadFrom(buf)
			if err != nil {
				return
			}
			app.WriteTo(fmt.Appendf(nil, "%s to %s", buf[:n], to), flow.UDPAddrOf(stranger))
		}
	}})
	c := rig.listenUDP(t, app4)
	for _, to := range []string{"203.0.113.1:53", "203.0.113.2:53", "203.0.113.2:443"} {
		c.WriteTo([]byte("hello"), flow.UDPAddrOf(netip.MustParseAddrPort(to)))
		in := make([]byte, 100)
		n, from, err := c.ReadFrom(in)
		if err != nil || string(in[:n]) != "hello to "+to || flow.AddrPortOf(from) != stranger {
			t.Errorf("got %q from %v, %v", in[:n], from, err)
		}
	}
	if n := flows.Load(); n != 1 {
		t.Errorf("one socket made %d flows", n)
	}
}

func TestUserspaceUDPRefusal(t *testing.T) {
	rig := newUserspaceRig(t, gvisorHandler{packets: func(_ context.Context, f flow.Flow, app net.PacketConn) {
		app.(flow.Refuser).Refuse(f.Dst)
		app.Close()
	}})
	for _, to := range []netip.AddrPort{target4, target6} {
		remote, proto := fullAddress(to)
		c, err := gonet.DialUDP(rig.app, nil, &remote, proto)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(make([]byte, 1200))
		for range 100 { // a blocked Read of gonet does not notice
			c.SetDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err = c.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "refused") {
				break
			}
		}
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("read from %s: %v; want a refusal", to, err)
		}
	}
}

func TestUserspaceSessionDeadline(t *testing.T) {
	ended := make(chan error, 3)
	rig := newUserspaceRig(t, gvisorHandler{packets: func(_ context.Context, _ flow.Flow, app net.PacketConn) {
		buf := make([]byte, 10)
		app.ReadFrom(buf)
		app.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, _, err := app.ReadFrom(buf)
		ended <- err
		app.SetReadDeadline(time.Time{}) // from now on it waits again, until Close
		time.AfterFunc(20*time.Millisecond, func() { app.Close() })
		_, _, err = app.ReadFrom(buf)
		ended <- err
		_, err = app.WriteTo(buf, flow.UDPAddrOf(target4))
		ended <- err
	}})
	rig.listenUDP(t, app4).WriteTo([]byte("x"), flow.UDPAddrOf(target4))
	for _, want := range []error{os.ErrDeadlineExceeded, net.ErrClosed, net.ErrClosed} {
		select {
		case err := <-ended:
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		case <-time.After(3 * time.Second):
			t.Fatalf("blocked; want %v", want)
		}
	}
}

func TestUserspaceSessionsExpireAndStayBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newGvisorUDP(nil, &gate{}, nil)
		add := func(i int) *gvisorSession {
			s := newGvisorSession(u, netip.AddrPortFrom(app4, uint16(i)))
			u.sessions[s.app] = s
			return s
		}
		busy, quiet := add(1), add(2)
		go u.expire(t.Context())
		time.Sleep(flow.UDPIdle - time.Second) // RFC 4787 REQ-5
		busy.push(gvisorDatagram{payload: make([]byte, 100)})
		synctest.Wait()
		if isClosed(quiet.closed) {
			t.Errorf("a session is gone after %v", flow.UDPIdle-time.Second)
		}
		time.Sleep(2 * udpSweep)
		synctest.Wait()
		if !isClosed(quiet.closed) || isClosed(busy.closed) || len(u.sessions) != 1 {
			t.Errorf("after five minutes: quiet closed %t, busy closed %t, %d sessions", isClosed(quiet.closed), isClosed(busy.closed), len(u.sessions))
		}
		for range 2 * udpQueue { // nobody reads
			busy.push(gvisorDatagram{payload: make([]byte, 100)})
		}
		if got := u.queued.Load(); got != udpQueue*100 {
			t.Errorf("%d bytes queued, want %d", got, udpQueue*100)
		}
		time.Sleep(flow.UDPIdle + udpSweep + time.Second)
		synctest.Wait()
		if len(u.sessions) != 0 || u.queued.Load() != 0 {
			t.Errorf("%d sessions and %d bytes left", len(u.sessions), u.queued.Load())
		}
		for i := range udpSessions {
			add(i)
		}
		u.evict()
		if len(u.sessions) != udpSessions-1 {
			t.Errorf("evict left %d of %d sessions", len(u.sessions), udpSessions)
		}
	})
}

func TestUserspaceAnswersEcho(t *testing.T) {
	rig := newUserspaceRig(t, gvisorHandler{})
	for _, to := range []netip.AddrPort{target4, target6} {
		for _, size := range []int{0, 56, 4000} {
			data := randomBytes(5, size)
			reply := rig.ping(t, to.Addr(), data)
			wantType := byte(header.ICMPv4EchoReply)
			if to.Addr().Is6() {
				wantType = byte(header.ICMPv6EchoReply)
			}
			if len(reply) != 8+size || reply[0] != wantType || !bytes.Equal(reply[8:], data) {
				t.Errorf("ping %s with %d bytes: reply of %d bytes, %x", to.Addr(), size, len(reply), reply[:min(8, len(reply))])
			}
		}
	}
}

// ping sends an echo request from the app's stack and returns the ICMP message
// that answers it.
func (r *userspaceRig) ping(t *testing.T, to netip.Addr, data []byte) []byte {
	t.Helper()
	addr, proto := fullAddress(netip.AddrPortFrom(to, 0))
	kind, local := icmp.ProtocolNumber4, app4
	message := append([]byte{byte(header.ICMPv4Echo), 0, 0, 0, 0, 0, 0, 1}, data...)
	if to.Is6() {
		kind, local = icmp.ProtocolNumber6, app6
		message[0] = byte(header.ICMPv6EchoRequest)
	} else {
		h := header.ICMPv4(message)
		h.SetChecksum(^checksum.Checksum(h, 0))
	}
	queue := new(waiter.Queue)
	ep, err := r.app.NewEndpoint(kind, proto, queue)
	if err != nil {
		t.Fatal(err)
	}
	defer ep.Close()
	if err := ep.Bind(tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(local.AsSlice())}); err != nil {
		t.Fatal(err)
	}
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	queue.EventRegister(&entry)
	if _, err := ep.Write(bytes.NewReader(message), tcpip.WriteOptions{To: &addr}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-readable:
	case <-time.After(3 * time.Second):
		t.Fatalf("no echo reply from %s", to)
	}
	var in bytes.Buffer
	if _, err := ep.Read(&in, tcpip.ReadOptions{}); err != nil {
		t.Fatal(err)
	}
	return in.Bytes()
}
