package route

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// pushSocket is an appSocket that hands over bursts.
type pushSocket struct {
	*appSocket
	mu   sync.Mutex
	f    func([]flow.Datagram) int // guarded by mu
	deaf bool                      // Send loses everything
}

func (a *pushSocket) Push(f func([]flow.Datagram) int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.f = f
}

func (a *pushSocket) push(ms ...flow.Datagram) int {
	a.mu.Lock()
	f := a.f
	a.mu.Unlock()
	if f == nil { // the handler has not come that far
		return 0
	}
	return f(ms)
}

// taken is push for datagrams that have to be taken: none is while the handler
// is still busy with one from before.
func (a *pushSocket) taken(ms ...flow.Datagram) (n int) {
	for until := time.Now().Add(10 * time.Second); n == 0 && time.Now().Before(until); time.Sleep(time.Millisecond) {
		n = a.push(ms...)
	}
	return n
}

func (a *pushSocket) Send(ms []flow.Datagram) (done, lost int, err error) {
	if a.deaf {
		return len(ms), len(ms), nil
	}
	for _, m := range ms {
		a.out <- datagram{string(m.Data), flow.UDPAddrOf(m.Addr)}
	}
	return len(ms), 0, nil
}

func (a *pushSocket) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case d := <-a.out:
			if d.data != w {
				t.Errorf("%q came back, want %q", d.data, w)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no %q came back", w)
		}
	}
}

// TestPush: datagrams whose way is open go at once, by the same rules as the
// others; the rest is left.
func TestPush(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	dns53 := netip.MustParseAddrPort("9.9.9.9:53")
	fake := netip.AddrPortFrom(netip.MustParseAddr("198.18.1.7"), server.Port())
	var held atomic.Bool
	var current atomic.Pointer[upstream.Upstream]
	other := newUpstream(t, "direct://", upstream.Options{})
	h := handler(t, func(o *Options) {
		current.Store(o.Direct)
		o.Current, o.Blocked, o.DNS = current.Load, held.Load, &dnsFake{}
		o.Resolve = func(a netip.Addr) (string, bool) {
			if a == fake.Addr() {
				return "127.0.0.1", true
			}
			return "", false
		}
	})
	a := &pushSocket{appSocket: newAppSocket()}
	to := func(ap netip.AddrPort, data ...string) (ms []flow.Datagram) {
		for _, d := range data {
			ms = append(ms, flow.Datagram{Data: []byte(d), Addr: ap})
		}
		return ms
	}
	carryPackets(t, h, udpFlow(server), a)
	a.ask(t, "open", flow.UDPAddrOf(server))
	if n := a.taken(to(server, "a", "b", "c")...); n != 3 {
		t.Errorf("%d of 3 taken", n)
	}
	a.expect(t, "s:a", "s:b", "s:c")
	if n := a.taken(slices.Concat(to(server, "d"), to(dns53, lookup(1)), to(server, "e"))...); n != 1 {
		t.Errorf("%d taken before a query", n)
	}
	a.expect(t, "s:d")
	if n := a.push(to(netip.AddrPortFrom(server.Addr(), 9), "x")...); n != 0 {
		t.Error("taken, although nobody has judged that destination")
	}
	a.ask(t, "open", flow.UDPAddrOf(fake))
	for range 2 { // destinations in turn, one with a name
		if n := a.taken(slices.Concat(to(fake, "f"), to(server, "g"))...); n != 2 {
			t.Errorf("%d of 2 taken", n)
		}
		got := []string{(<-a.out).data, (<-a.out).data}
		if slices.Sort(got); !slices.Equal(got, []string{"s:f", "s:g"}) {
			t.Errorf("%q came back", got)
		}
	}
	held.Store(true)
	if n := a.push(to(server, "x")...); n != 0 {
		t.Error("taken while traffic is held")
	}
	held.Store(false)
	current.Store(other)
	if n := a.push(to(server, "x")...); n != 0 {
		t.Error("taken for an upstream that is not in use any more")
	}
	a.ask(t, "open", flow.UDPAddrOf(server))
	if n := a.taken(to(server, "h")...); n != 1 {
		t.Error("not taken for the upstream in use now")
	}
	a.expect(t, "s:h")
	long := flow.Datagram{Data: bytes.Repeat([]byte("x"), 65535), Addr: server}
	if n := a.taken(long); n != 1 {
		t.Error("a datagram that nobody can send is left to try again")
	}
	// 13 were sent one way or the other, and answered
	for range 100 {
		if c := h.Counters(); c.UDPUp == 13 && c.UDPDown == 13 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if c := h.Counters(); c.UDPUp != 12 || c.UDPDown != 12 || c.UDPLost != 1 || c.UDPBlocked != 0 {
		t.Errorf("%+v", c)
	}
	a.Close()
	for range 1000 {
		if h.Counters().Open == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := a.push(to(server, "x")...); n != 0 {
		t.Error("taken after the flow has ended")
	}
}

// TestDeliverCounts: what the app's socket does not take is counted.
func TestDeliverCounts(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	h := handler(t, nil)
	a := &pushSocket{appSocket: newAppSocket(), deaf: true}
	carryPackets(t, h, udpFlow(server), a)
	a.in <- datagram{"x", flow.UDPAddrOf(server)}
	for range 1000 {
		if h.Counters().UDPLost == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if c := h.Counters(); c.UDPUp != 1 || c.UDPLost != 1 || c.UDPDown != 0 || c.DirectDown != 0 {
		t.Errorf("%+v", c)
	}
}

// TestPushNoAllocation holds the price of a burst.
func TestPushNoAllocation(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) // nobody reads from it
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := flow.AddrPortOf(sink.LocalAddr())
	h := handler(t, nil)
	a := &pushSocket{appSocket: newAppSocket()}
	carryPackets(t, h, udpFlow(to), a)
	a.in <- datagram{"x", flow.UDPAddrOf(to)}
	ms := slices.Repeat([]flow.Datagram{{Data: make([]byte, 100), Addr: to}}, 10)
	for a.push(ms...) == 0 { // until the way is open
		time.Sleep(time.Millisecond)
	}
	if n := testing.AllocsPerRun(100, func() { a.push(ms...) }); n >= 1 {
		t.Errorf("%v allocations for ten datagrams", n)
	}
}
