package upstream

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// batchConn is what both kinds of association are on Linux.
type batchConn interface {
	net.PacketConn
	flow.BatchSender
	flow.BatchReceiver
}

// carriers opens an association through a SOCKS5 proxy and one straight.
func carriers(t *testing.T, server netip.AddrPort) map[string]batchConn {
	t.Helper()
	all := map[string]batchConn{}
	for name, u := range map[string]*Upstream{
		"socks5": open(t, "socks5://"+serve(t, (&socksProxy{}).handle).String(), nil, Options{}),
		"direct": open(t, "direct://", nil, Options{Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{server.Addr()}, nil
		}}),
	} {
		c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		all[name] = c.(batchConn)
	}
	return all
}

// TestBatches: what is sent in bursts comes back whole and in order.
func TestBatches(t *testing.T) {
	server := udpEcho(t)
	for name, c := range carriers(t, server) {
		t.Run(name, func(t *testing.T) {
			var want [][]byte
			for i, size := range slices.Concat([]int{0}, slices.Repeat([]int{1200}, 70), []int{300, 0, 0, 60000, 1}) {
				want = append(want, bytes.Repeat([]byte{byte(i)}, size))
			}
			got, ended := make(chan []byte, len(want)), make(chan error, 1)
			go func() {
				ended <- c.Receive(func(ms []flow.Datagram) {
					for _, m := range ms {
						if m.Addr != server || m.Name != "" {
							t.Errorf("from %v %q", m.Addr, m.Name)
						}
						got <- bytes.Clone(m.Data)
					}
				})
			}()
			for rest := want; len(rest) > 0; {
				burst := rest[:min(7, len(rest))] // no more than the echo's socket has room for
				rest = rest[len(burst):]
				var ms []flow.Datagram
				for _, data := range burst {
					ms = append(ms, flow.Datagram{Data: data, Addr: server})
				}
				if done, lost, err := c.Send(ms); done != len(ms) || lost != 0 || err != nil {
					t.Fatal(done, lost, err)
				}
				for _, data := range burst {
					select {
					case b := <-got:
						if !bytes.Equal(b, data) {
							t.Fatalf("%d bytes came back, want %d", len(b), len(data))
						}
					case <-time.After(10 * time.Second):
						t.Fatalf("nothing came back, want %d bytes", len(data))
					}
				}
			}
			c.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Receive ended with %v", err)
			}
			one := []flow.Datagram{{Data: []byte("x"), Addr: server}}
			if done, lost, err := c.Send(one); done != 1 || lost != 1 || !errors.Is(err, net.ErrClosed) {
				t.Error("after Close:", done, lost, err)
			}
		})
	}
}

// TestSendLoses: a datagram that cannot go takes no other with it.
func TestSendLoses(t *testing.T) {
	server := udpEcho(t)
	for name, c := range carriers(t, server) {
		long := flow.Datagram{Data: make([]byte, 65535), Addr: server}
		ok := flow.Datagram{Data: []byte("x"), Addr: server}
		if done, lost, err := c.Send([]flow.Datagram{ok, ok, long, ok, long}); done != 5 || lost != 2 || !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s: %d done, %d lost, %v", name, done, lost, err)
		}
		named := flow.Datagram{Data: []byte("x"), Name: "echo.example", Addr: netip.AddrPortFrom(netip.Addr{}, server.Port())}
		done, lost, err := c.Send([]flow.Datagram{ok, named, ok})
		switch name {
		case "direct": // which first has to ask for the name, by WriteTo
			if done != 1 || lost != 0 || err != nil {
				t.Errorf("unknown name: %d done, %d lost, %v", done, lost, err)
			}
			if _, err := c.WriteTo(named.Data, NameAddr{Name: named.Name, Port: server.Port()}); err != nil {
				t.Fatal(err)
			}
			if done, lost, err = c.Send([]flow.Datagram{ok, named, ok}); done != 3 || lost != 0 || err != nil {
				t.Errorf("known name: %d done, %d lost, %v", done, lost, err)
			}
		case "socks5":
			if done != 3 || lost != 0 || err != nil {
				t.Errorf("a name: %d done, %d lost, %v", done, lost, err)
			}
			named.Name = string(bytes.Repeat([]byte{'n'}, 300))
			if done, lost, err = c.Send([]flow.Datagram{ok, named, ok, {}}); done != 4 || lost != 2 || err == nil {
				t.Errorf("no name at all: %d done, %d lost, %v", done, lost, err)
			}
		}
	}
}

// TestSendCuts: bursts of one size go as one message, and where the kernel
// refuses that, one by one.
func TestSendCuts(t *testing.T) {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := flow.AddrPortOf(sink.LocalAddr())
	c := carriers(t, to)["direct"].(*directPackets)
	// Longer than loopback's MTU of 65536 allows together with others: cut
	// messages may not be fragmented.
	for _, size := range []int{100, 32000} {
		ms := slices.Repeat([]flow.Datagram{{Data: make([]byte, size), Addr: to}}, 4)
		if done, lost, err := c.Send(ms); done != 4 || lost != 0 || err != nil {
			t.Fatal(size, done, lost, err)
		}
		b := make([]byte, 65535)
		sink.SetReadDeadline(time.Now().Add(10 * time.Second))
		for range ms {
			if n, err := sink.Read(b); n != size || err != nil {
				t.Fatal(n, err)
			}
		}
	}
	// A message that is refused as a whole is sent again in pieces.
	b := c.dialer.sending()
	for range 3 {
		b.add(nil, make([]byte, 50), to, c.v6, true)
	}
	b.control[0][12] = 0xff // no such option
	var alone atomic.Bool
	done, lost, err := b.flush(c.raw, &alone)
	if done != 3 || lost != 0 || err != nil || !alone.Load() {
		t.Error(done, lost, err, alone.Load())
	}
	for range 3 {
		if n, err := sink.Read(make([]byte, 100)); n != 50 || err != nil {
			t.Fatal(n, err)
		}
	}
}

// TestBatchNoAllocation holds the price of a burst.
func TestBatchNoAllocation(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := flow.AddrPortOf(sink.LocalAddr())
	ms := slices.Repeat([]flow.Datagram{{Data: make([]byte, 100), Addr: to}}, 10)
	for name, c := range carriers(t, to) {
		if n := testing.AllocsPerRun(100, func() { c.Send(ms) }); n >= 1 {
			t.Errorf("%s: %v allocations to send ten datagrams", name, n)
		}
	}
}
