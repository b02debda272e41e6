package route

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestPacketsRefusedByTarget: an app that sends to a closed port hears of it from
// the address it knows, a fake one too (RFC 1122 section 4.1.3.3).
func TestPacketsRefusedByTarget(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := flow.AddrPortOf(c.LocalAddr())
	_ = c.Close()
	fake := netip.AddrPortFrom(netip.MustParseAddr("198.18.1.7"), closed.Port())
	h := handler(t, func(o *Options) {
		o.Resolve = func(a netip.Addr) (string, bool) {
			if a == fake.Addr() {
				return "closed.example", true
			}
			return "", false
		}
	})
	for _, to := range []netip.AddrPort{closed, fake} {
		a := newAppSocket()
		carryPackets(t, h, udpFlow(to), a)
		a.in <- datagram{"x", flow.UDPAddrOf(to)}
		select {
		case got := <-a.refused:
			if got != to {
				t.Errorf("refused by %v, want %v", got, to)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%v: the app is not told", to)
		}
	}
}
