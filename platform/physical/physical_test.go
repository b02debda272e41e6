package physical

import (
	"fmt"
	"net/netip"
	"testing"
)

func machine() Network {
	p := netip.MustParsePrefix
	return Network{
		Links: []Link{
			{"en0", 6, []netip.Prefix{p("192.168.1.20/24"), p("fe80::1234/64"), p("2001:db8::5/64")}},
			{"en1", 7, []netip.Prefix{p("10.0.0.5/8"), p("172.16.4.2/22"), p("203.0.113.4/24"), p("192.168.1.21/24")}},
			{"en2", 8, []netip.Prefix{p("10.1.2.3/32"), p("172.16.9.9/9"), p("169.254.1.1/8"), p("169.254.1.1/16")}},
		},
		Default4: 7, Default6: 6,
	}
}

func TestChange(t *testing.T) {
	dns := netip.MustParseAddr("192.168.1.1")
	c := machine().Change([]netip.Addr{dns})
	if got, want := fmt.Sprint(c.LAN), "[169.254.0.0/16 172.16.4.0/22 192.168.1.0/24 fe80::/64]"; got != want {
		t.Errorf("LAN %s, want %s: no public range, not all of 10/8, nothing twice", got, want)
	}
	if !c.Up || !c.Has4 || !c.Has6 || c.Interface != "en1" || len(c.DNS) != 1 {
		t.Errorf("change %+v", c)
	}
	six := Network{Links: machine().Links, Default6: 6}
	if c := six.Change(nil); !c.Up || c.Has4 || c.Interface != "en0" {
		t.Errorf("IPv6 only: %+v", c)
	}
	if c := (Network{Links: machine().Links}).Change(nil); c.Up || c.Interface != "" {
		t.Errorf("no default route: %+v", c)
	}
}

func TestVia(t *testing.T) {
	for dst, want := range map[string]int{
		"tcp4 8.8.8.8:53": 7, "tcp4 192.168.1.1:80": 6, "tcp4 172.16.7.9:1": 7, "tcp6 [2001:db8::9]:1": 6,
		"tcp6 [2606::1]:443": 6, "udp4 0.0.0.0:0": 7, "udp6 [::]:0": 6, "udp4 :0": 7, "tcp6 [fe80::9%en0]:1": 6,
		"tcp4 127.0.0.1:1": -1, "tcp6 [::1]:1": -1,
	} {
		var family, address string
		fmt.Sscan(dst, &family, &address)
		got := -1
		if a, loopback := Destination(address); !loopback {
			got = machine().Via(a, family[3] == '6')
		}
		if got != want {
			t.Errorf("%s leaves by %d, want %d", dst, got, want)
		}
	}
}

func TestPrivateSubnet(t *testing.T) {
	for in, want := range map[string]string{
		"192.168.7.2/24":        "192.168.7.0/24",
		"192.168.0.1/16":        "192.168.0.0/16",
		"10.1.2.3/16":           "10.1.0.0/16",
		"10.0.0.1/8":            "", // all of it
		"10.0.0.1/7":            "",
		"172.17.0.1/16":         "172.17.0.0/16",
		"172.32.0.1/16":         "",
		"172.16.0.1/12":         "",
		"172.16.0.1/9":          "", // public ones too
		"203.0.113.5/24":        "",
		"192.168.0.1/15":        "",
		"0.0.0.0/0":             "",
		"100.64.1.1/10":         "",
		"169.254.3.4/16":        "",
		"fd00:1:2:3::1/64":      "fd00:1:2:3::/64",
		"fc00::/7":              "",
		"2001:db8::1/64":        "",
		"fe80::1/64":            "",
		"::ffff:192.168.7.2/24": "",
	} {
		got := ""
		if s, ok := PrivateSubnet(netip.MustParsePrefix(in)); ok {
			got = s.String()
		}
		if got != want {
			t.Errorf("PrivateSubnet(%s) = %q, want %q", in, got, want)
		}
	}
}

func TestHalves(t *testing.T) {
	for in, want := range map[string]string{
		"0.0.0.0/0": "[0.0.0.0/1 128.0.0.0/1]", "::/0": "[::/1 8000::/1]",
		"192.168.1.0/24": "[192.168.1.0/25 192.168.1.128/25]", "10.0.0.2/31": "[10.0.0.2/32 10.0.0.3/32]",
		"10.0.0.2/32": "[10.0.0.2/32]", "192.168.1.7/24": "[192.168.1.0/25 192.168.1.128/25]",
	} {
		if got := fmt.Sprint(Halves(netip.MustParsePrefix(in))); got != want {
			t.Errorf("halves of %s: %s, want %s", in, got, want)
		}
	}
}
