package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// giveUDP sends a datagram from port sport of the app.
func (k *kernel) giveUDP(q *memoryQueue, sport, dport uint16, data string) {
	k.give(q, craft(appAddr4, "203.0.113.7", protoUDP, udpDatagram(sport, dport, data)))
}

// TestUDPSession checks one session per app socket, whatever the destination,
// and the way back.
func TestUDPSession(t *testing.T) {
	flows := make(chan flow.Flow, 8)
	conns := make(chan net.PacketConn, 8)
	k, q := newMemoryKernel(t, funcHandler{packets: func(_ context.Context, f flow.Flow, c net.PacketConn) {
		flows <- f
		conns <- c
		<-c.(*udpSession).done
	}})
	k.giveUDP(q, 5000, 53, "one")
	k.giveUDP(q, 5000, 443, "two")
	c, f := <-conns, <-flows
	if f.Network != flow.UDP || f.Inbound != flow.TUN || f.Src.String() != "198.18.0.1:5000" || f.Target.String() != "203.0.113.7:53" {
		t.Errorf("flow %+v", f)
	}
	b := make([]byte, 2)
	for _, want := range []struct{ data, to string }{{"on", "203.0.113.7:53"}, {"tw", "203.0.113.7:443"}} {
		n, to, err := c.ReadFrom(b) // cut to the buffer
		if err != nil || string(b[:n]) != want.data || to.String() != want.to {
			t.Errorf("%q to %v, %v; want %+v", b[:n], to, err, want)
		}
	}
	if _, err := c.WriteTo([]byte("answer"), flow.UDPAddrOf(netip.MustParseAddrPort("203.0.113.9:7"))); err != nil {
		t.Fatal(err)
	}
	out := q.take()
	if len(out) != 1 || !correct(t, out[0]) {
		t.Fatalf("%d packets, or a wrong checksum: %x", len(out), out)
	}
	p, _ := parse(out[0])
	if from, to := p.tuple().srcAddrPort(), p.tuple().dstAddrPort(); from.String() != "203.0.113.9:7" || to != f.Src || string(p.transport()[udpBytes:]) != "answer" {
		t.Errorf("the answer went from %v to %v", from, to)
	}
	if _, err := c.WriteTo(nil, flow.UDPAddrOf(netip.MustParseAddrPort("[2001:db8::7]:7"))); err == nil {
		t.Error("an IPv6 source was accepted for an IPv4 app")
	}
	if _, err := c.WriteTo(make([]byte, 65508), flow.UDPAddrOf(f.Dst)); !errors.Is(err, errTooLong) {
		t.Errorf("65508 bytes: %v", err)
	}
	c.(flow.Refuser).Refuse(f.Dst)
	if out := q.take(); len(out) != 1 || !correct(t, out[0]) || out[0][vnetBytes+ipv4Bytes] != 3 || out[0][vnetBytes+ipv4Bytes+1] != 3 {
		t.Errorf("refused by %x, want port unreachable", out)
	}
	c.Close()
	if _, _, err := c.ReadFrom(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := c.WriteTo(nil, flow.UDPAddrOf(f.Dst)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	k.giveUDP(q, 5000, 53, "three")
	if again := <-conns; again == c {
		t.Error("a closed session came back")
	}
}

func TestUDPDeadlineAndIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conns := make(chan net.PacketConn, 2)
		k, q := newMemoryKernel(t, funcHandler{packets: func(_ context.Context, _ flow.Flow, c net.PacketConn) {
			conns <- c
			<-c.(*udpSession).done
		}})
		k.giveUDP(q, 1, 53, "")
		dns := <-conns
		k.giveUDP(q, 2, 443, "")
		other := <-conns
		b := make([]byte, 1)
		wait := dns.(flow.ReadWaiter).WaitRead
		if err := errors.Join(wait(), wait()); err != nil { // what it waits for stays there
			t.Errorf("wait for a datagram that is there: %v", err)
		}
		dns.ReadFrom(b)
		start := time.Now()
		dns.SetReadDeadline(start.Add(time.Second))
		if _, _, err := dns.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := wait(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wait past the deadline: %v", err)
		}
		moved := make(chan error)
		dns.SetReadDeadline(time.Now().Add(time.Second))
		go func() { _, _, err := dns.ReadFrom(b); moved <- err }()
		synctest.Wait()
		dns.SetReadDeadline(time.Time{}) // never
		time.Sleep(2 * time.Second)
		k.giveUDP(q, 1, 53, "x")
		if err := <-moved; err != nil {
			t.Errorf("read with its deadline taken away: %v", err)
		}
		time.Sleep(flow.UDPIdleDNS + time.Second)
		k.expireUDP(k.now())
		if !expired(dns.(*udpSession).done) || expired(other.(*udpSession).done) {
			t.Error("want the DNS session ended and the other not")
		}
		if err := wait(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("wait for a closed session: %v", err)
		}
		time.Sleep(flow.UDPIdle - flow.UDPIdleDNS - 5*time.Second) // RFC 4787 REQ-5
		k.expireUDP(k.now())
		if expired(other.(*udpSession).done) {
			t.Error("a session is gone that the handler may keep for five minutes")
		}
		time.Sleep(5 * time.Second)
		k.expireUDP(k.now())
		if !expired(other.(*udpSession).done) {
			t.Error("a silent session is kept")
		}
	})
}

// TestUDPBounds floods sessions and one session's queue: LD-04, LD-06.
func TestUDPBounds(t *testing.T) {
	k, q := newMemoryKernel(t, funcHandler{packets: func(_ context.Context, _ flow.Flow, c net.PacketConn) {
		<-c.(*udpSession).done
	}})
	const sent = queueDatagrams + 44
	for range sent {
		k.giveUDP(q, 1, 443, "x")
	}
	if n := k.counters.udpDropped.Load(); n != sent-queueDatagrams {
		t.Errorf("%d datagrams were dropped, want %d", n, sent-queueDatagrams)
	}
	for i := range maxUDPSessions + 1000 {
		k.giveUDP(q, uint16(2+i), 443, "x")
		if i%1000 == 0 {
			k.giveUDP(q, 1, 443, "x") // stays busy, so it is not evicted
		}
	}
	if n := k.udp.count.Load(); n > maxUDPSessions {
		t.Errorf("%d sessions, want at most %d", n, maxUDPSessions)
	}
	if k.udp.get(&tuple{src: addrOf(netip.MustParseAddr(appAddr4)), sport: 1}) == nil {
		t.Error("the busy session was evicted")
	}
	if k.counters.udpEvicted.Load() == 0 {
		t.Error("none was evicted")
	}
	k.udp.each(func(_ tuple, s *udpSession) { s.Close() })
	if n := k.queued.used.Load(); n != 0 {
		t.Errorf("%d bytes are still booked", n)
	}
}

// TestUDPNoAllocation holds the price of a datagram in an open session.
func TestUDPNoAllocation(t *testing.T) {
	if slower > 1 {
		t.Skip("the race detector allocates")
	}
	conns := make(chan net.PacketConn, 1)
	k, q := newMemoryKernel(t, funcHandler{packets: func(_ context.Context, _ flow.Flow, c net.PacketConn) {
		conns <- c
		<-c.(*udpSession).done
	}})
	raw := craft(appAddr4, "203.0.113.7", protoUDP, udpDatagram(1, 443, "x"))
	k.give(q, raw)
	c, b := <-conns, make([]byte, 100)
	c.ReadFrom(b)
	var failed atomic.Bool
	if n := testing.AllocsPerRun(200, func() {
		k.packet(t.Context(), nullQueue{}, raw)
		if _, _, err := c.ReadFrom(b); err != nil {
			failed.Store(true)
		}
	}); n >= 1 || failed.Load() {
		t.Errorf("%v allocations, failed: %v", n, failed.Load())
	}
}
