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
