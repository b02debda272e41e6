package upstream

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestReachable: a relay address that means the proxy's own network is no way
// to it from elsewhere, and no way into ours.
func TestReachable(t *testing.T) {
	for _, c := range [][3]string{ // said by the proxy, its address, used
		{"0.0.0.0", "203.0.113.1", "203.0.113.1"},
		{"::", "127.0.0.1", "127.0.0.1"},
		{"127.0.0.1", "203.0.113.1", "203.0.113.1"},
		{"10.0.0.4", "203.0.113.1", "203.0.113.1"},
		{"192.168.1.1", "2001:db8::1", "2001:db8::1"},
		{"169.254.169.254", "203.0.113.1", "203.0.113.1"},
		{"127.0.0.1", "192.168.1.9", "192.168.1.9"},
		{"127.0.0.1", "127.0.0.1", "127.0.0.1"},
		{"192.168.1.8", "192.168.1.9", "192.168.1.8"},
		{"192.168.1.8", "127.0.0.1", "192.168.1.8"},
		{"198.51.100.7", "203.0.113.1", "198.51.100.7"},
		{"198.51.100.7", "10.0.0.1", "198.51.100.7"},
	} {
		if got := reachable(netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])); got.String() != c[2] {
			t.Errorf("%s named %s: %s, want %s", c[1], c[0], got, c[2])
		}
	}
	if got := reachable(netip.Addr{}, netip.MustParseAddr("203.0.113.1")); got.String() != "203.0.113.1" {
		t.Errorf("nothing named: %s", got)
	}
}

// TestUDPRefused: a proxy that has refused UDP is not asked again for a while,
// and counts as one that carries none.
func TestUDPRefused(t *testing.T) {
	for reply, want := range map[byte]bool{2: false, 7: false, 1: true} {
		p := &socksProxy{noUDP: reply}
		u := open(t, "socks5://"+serve(t, p.handle).String(), nil, Options{})
		dial := func() error {
			_, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.Target{})
			return err
		}
		var e *Error
		if err := dial(); !errors.As(err, &e) || e.FromUpstream() || u.Stats().Failures != 0 {
			t.Errorf("reply %d: %v, %+v", reply, err, u.Stats())
		}
		if got := u.Packets() != nil; got != want {
			t.Errorf("after reply %d: UDP %v", reply, got)
		}
		for _, forget := range []func(){u.Flush, u.Rest} {
			forget()
			if err := dial(); err == nil {
				t.Errorf("reply %d: no error", reply)
			}
		}
		if n := p.refused.Load(); n != 3 {
			t.Errorf("reply %d: asked %d times", reply, n)
		}
	}
}

// TestCarriesUDP: an association is promised only where there would be one, and
// the proxy is asked for one once.
func TestCarriesUDP(t *testing.T) {
	for reply, want := range map[byte]bool{0: true, 1: true, 2: false, 7: false} {
		p := &socksProxy{noUDP: reply}
		u := open(t, "socks5://"+serve(t, p.handle).String(), nil, Options{})
		for range 3 {
			if got := u.CarriesUDP(t.Context()); got != want {
				t.Errorf("reply %d: UDP %v", reply, got)
			}
		}
		if n := p.refused.Load(); !want && n != 1 {
			t.Errorf("reply %d: asked %d times", reply, n)
		}
		eventually(t, "an association is left open", func() bool { return p.relays.Load() == 0 })
	}
	if !open(t, "direct://", nil, Options{}).CarriesUDP(t.Context()) || open(t, "http://127.0.0.1:1", nil, Options{}).CarriesUDP(t.Context()) {
		t.Error("direct carries UDP, CONNECT does not")
	}
}

// TestGroupUDPRefused: another member carries what one refuses to.
func TestGroupUDPRefused(t *testing.T) {
	server := udpEcho(t)
	first, second := &socksProxy{noUDP: 7}, &socksProxy{}
	a, b := gateAt(serve(t, first.handle), "socks5", ""), gateAt(serve(t, second.handle), "socks5", "")
	a.Name, b.Name, a.UDP, b.UDP = "a", "b", true, true
	u, r := groupOf(t, a, b)
	for range 3 {
		c, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if n, i := first.refused.Load(), info(t, r, "a"); n != 1 || i.UDP || i.Failures != 0 {
		t.Errorf("asked %d times: %+v", n, i)
	}
}

// TestUDPSource: a relay that names nobody, or by name whom we named by address,
// is understood as long as one destination alone was spoken to; what cannot be
// anybody's is dropped. Too long a datagram harms no other.
func TestUDPSource(t *testing.T) {
	server, other := udpEcho(t), udpEcho(t)
	const anyPort = 65535 // becomes the sender's
	for name, c := range map[string]struct {
		proxy *socksProxy
		want  int // datagrams with the source that was sent to, of those to one, and then to another
	}{
		"right":          {&socksProxy{}, 2},
		"nobody":         {&socksProxy{source: &flow.Target{Addr: netip.IPv4Unspecified()}}, 1},
		"no address":     {&socksProxy{source: &flow.Target{Addr: netip.IPv4Unspecified(), Port: anyPort}}, 1},
		"no port":        {&socksProxy{source: &flow.Target{Addr: netip.MustParseAddr("127.0.0.1")}}, 1},
		"nobody, IPv6":   {&socksProxy{source: &flow.Target{Addr: netip.IPv6Unspecified()}}, 1},
		"a name":         {&socksProxy{source: &flow.Target{Name: "echo.example", Port: anyPort}}, 1},
		"relay by name":  {&socksProxy{nameRelay: true}, 2},
		"relay: 0.0.0.0": {&socksProxy{zeroRelay: true}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			u := open(t, "socks5://"+serve(t, c.proxy.handle).String(), nil, Options{})
			conn, err := u.Packets().DialPackets(within(t, 5*time.Second), flow.TargetOf(server))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.WriteTo(make([]byte, maxDatagramBytes), flow.UDPAddrOf(server)); err == nil {
				t.Error("a datagram that has no room for its header was sent")
			}
			got, b := 0, make([]byte, 2048)
			for _, to := range []netip.AddrPort{server, other} {
				if _, err := conn.WriteTo([]byte("hello"), flow.UDPAddrOf(to)); err != nil {
					t.Fatal(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				if n, from, err := conn.ReadFrom(b); err == nil && flow.AddrPortOf(from) == to && string(b[:n]) == "hello" {
					got++
				}
			}
			if got != c.want {
				t.Errorf("%d of 2", got)
			}
		})
	}
}
