package upstream

import (
	"net/netip"
	"testing"
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
