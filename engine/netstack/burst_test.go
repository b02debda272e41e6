package netstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// openSession sends a first datagram from port 5000 and reads it.
func openSession(t *testing.T) (*kernel, *memoryQueue, *udpSession) {
	t.Helper()
	conns := make(chan *udpSession, 1)
	k, q := newMemoryKernel(t, funcHandler{packets: func(_ context.Context, _ flow.Flow, c net.PacketConn) {
		conns <- c.(*udpSession)
		<-c.(*udpSession).done
	}})
	k.giveUDP(q, 5000, 443, "first")
	s := <-conns
	if _, _, err := s.ReadFrom(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	return k, q, s
}

// uncut makes a packet of datagrams that the kernel has left together.
func uncut(data string, size int) []byte {
	raw := craft(appAddr4, "203.0.113.7", protoUDP, udpDatagram(5000, 443, data))
	raw[0], raw[1] = needsCsum, gsoUDP
	binary.NativeEndian.PutUint16(raw[4:], uint16(size))
	return raw
}

// TestPush checks what goes to the handler's function and what to ReadFrom.
func TestPush(t *testing.T) {
	k, q, s := openSession(t)
	var got []string
	room := 2
	s.Push(func(ms []flow.Datagram) int {
		n := min(room, len(ms))
		for _, m := range ms[:n] {
			got = append(got, fmt.Sprintf("%s>%v", m.Data, m.Addr))
		}
		return n
	})
	read := func() string {
		b := make([]byte, 10)
		n, _, err := s.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	k.give(q, uncut("aabbccd", 2))
	if want := []string{"aa>203.0.113.7:443", "bb>203.0.113.7:443"}; !slices.Equal(got, want) {
		t.Errorf("pushed %q, want %q", got, want)
	}
	k.giveUDP(q, 5000, 443, "e") // must not overtake
	if a, b, c := read(), read(), read(); a+b+c != "ccde" || len(got) != 2 {
		t.Errorf("left to read: %q %q %q; pushed %q", a, b, c, got)
	}
	got = nil
	k.giveUDP(q, 5000, 443, "f")
	if len(got) != 1 {
		t.Errorf("pushed %q", got)
	}
	s.Push(nil)
	k.giveUDP(q, 5000, 443, "g")
	if a := read(); a != "g" || len(got) != 1 {
		t.Errorf("after Push(nil): read %q, pushed %q", a, got)
	}
	k.give(q, uncut("", 0)) // an empty datagram, and a size that cannot be
	if a := read(); a != "" {
		t.Errorf("read %q", a)
	}
	if n := k.counters.udpDropped.Load(); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// TestBurst checks that each session gets its own, in order.
func TestBurst(t *testing.T) {
	conns := make(chan *udpSession, 2)
	k, q := newMemoryKernel(t, funcHandler{packets: func(_ context.Context, _ flow.Flow, c net.PacketConn) {
		conns <- c.(*udpSession)
		<-c.(*udpSession).done
	}})
	got := map[uint16][]string{}
	for _, port := range []uint16{1, 2} {
		k.giveUDP(q, port, 443, "")
		s := <-conns
		_, _, _ = s.ReadFrom(nil)
		s.Push(func(ms []flow.Datagram) int {
			var all []string
			for _, m := range ms {
				all = append(all, string(m.Data))
			}
			got[port] = append(got[port], strings.Join(all, " "))
			return len(ms)
		})
	}
	b := &burst{queue: q}
	for i := range 6 {
		k.take(t.Context(), b, craft(appAddr4, "203.0.113.7", protoUDP, udpDatagram(uint16(1+i%2), 443, fmt.Sprint(i))))
	}
	b.empty()
	if !slices.Equal(got[1], []string{"0 2 4"}) || !slices.Equal(got[2], []string{"1 3 5"}) || !b.busy || len(b.held) != 0 {
		t.Errorf("%v, %+v", got, b)
	}
}

// oldQueue refuses what kernels before 6.2 do.
type oldQueue struct{ memoryQueue }

func (q *oldQueue) Write(p []byte) (int, error) {
	if p[1] == gsoUDP {
		return 0, syscall.EINVAL
	}
	return q.memoryQueue.Write(p)
}

// TestSendTogether checks which datagrams share a packet.
func TestSendTogether(t *testing.T) {
	k, q, s := openSession(t)
	from := func(last string) netip.AddrPort { return netip.MustParseAddrPort("203.0.113." + last) }
	var ms []flow.Datagram
	for _, m := range []struct {
		size int
		from string
	}{{10, "7:1"}, {10, "7:1"}, {4, "7:1"}, {4, "7:1"}, {4, "7:2"}, {0, "7:2"}, {2000, "7:2"}, {2000, "7:2"}} {
		ms = append(ms, flow.Datagram{Data: []byte(strings.Repeat("x", m.size)), Addr: from(m.from)})
	}
	if done, lost, err := s.Send(ms); done != len(ms) || lost != 0 || err != nil {
		t.Fatal(done, lost, err)
	}
	var sizes []string
	for _, raw := range q.take() {
		p, ok := parse(raw)
		if !ok {
			t.Fatalf("%x", raw)
		}
		size := 0
		if raw[1] == gsoUDP {
			size = p.datagramBytes()
			if head := int(binary.NativeEndian.Uint16(raw[2:])); head != ipv4Bytes+udpBytes {
				t.Errorf("header of %d bytes", head)
			}
		}
		if !p.fragment {
			if !correct(t, raw) {
				t.Error("wrong checksum")
			}
			sizes = append(sizes, fmt.Sprintf("%d/%d", len(p.transport())-udpBytes, size))
		}
	}
	// longer than the MTU: in fragments, as ever
	if want := []string{"24/10", "4/0", "4/0", "0/0"}; !slices.Equal(sizes, want) {
		t.Errorf("packets %q, want %q", sizes, want)
	}

	long := slices.Repeat([]flow.Datagram{{Data: make([]byte, 1400), Addr: from("7:1")}}, 100)
	if done, lost, err := s.Send(long); done != 100 || lost != 0 || err != nil {
		t.Error(done, lost, err)
	}
	if out := q.take(); len(out) != 3 {
		t.Errorf("100 datagrams of 1400 bytes: %d packets", len(out))
	}

	old := &oldQueue{}
	s.queue = old
	if done, lost, err := s.Send(long[:5]); done != 5 || lost != 0 || err != nil || len(old.take()) != 5 || !k.cutUDP.Load() {
		t.Error("an old kernel does not get them one by one:", done, lost, err)
	}
	wrong := append(long[:2:2], flow.Datagram{Addr: netip.MustParseAddrPort("[2001:db8::7]:7")})
	if done, lost, err := s.Send(append(wrong, long[0])); done != 4 || lost != 1 || err == nil {
		t.Error("a source of the other family:", done, lost, err)
	}
}

// TestBurstNoAllocation holds the price of datagrams in both directions.
func TestBurstNoAllocation(t *testing.T) {
	if slower > 1 {
		t.Skip("the race detector allocates")
	}
	k, _, s := openSession(t)
	s.queue = nullQueue{}
	n := 0
	s.Push(func(ms []flow.Datagram) int { n += len(ms); return len(ms) })
	raw := uncut(strings.Repeat("x", 1000), 100)
	b := &burst{queue: nullQueue{}}
	if got := testing.AllocsPerRun(200, func() { k.take(t.Context(), b, raw); b.empty() }); got >= 1 || n < 2000 {
		t.Errorf("%v allocations for ten datagrams of an app; %d pushed", got, n)
	}
	ms := slices.Repeat([]flow.Datagram{{Data: make([]byte, 100), Addr: netip.MustParseAddrPort("203.0.113.7:443")}}, 10)
	if got := testing.AllocsPerRun(200, func() { s.Send(ms) }); got >= 1 {
		t.Errorf("%v allocations for ten datagrams to an app", got)
	}
}
