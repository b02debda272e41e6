package darwin

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
)

func TestParseDNS(t *testing.T) {
	b, err := os.ReadFile("testdata/scutil-dns.txt")
	if err != nil {
		t.Fatal(err)
	}
	ours := []netip.Addr{dns4, dns6}
	for iface, want := range map[string]string{
		"en0": "[192.168.1.1 fe80::1%en0]", // scoped
		"en7": "[9.9.9.9]",                 // no scoped one: the plain one, without ours
		"":    "[9.9.9.9]",
	} {
		if got := fmt.Sprint(parseDNS(string(b), iface, ours)); got != want {
			t.Errorf("resolvers of %q: %s, want %s", iface, got, want)
		}
	}
	if got := parseDNS("No DNS configuration available\n", "en0", nil); got != nil {
		t.Errorf("from nothing: %v", got)
	}
}

func FuzzParseDNS(f *testing.F) {
	b, err := os.ReadFile("testdata/scutil-dns.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b), "en0")
	f.Add("resolver #1\n  nameserver[0] : 1.2.3.4\n  if_index : (\n", "")
	f.Fuzz(func(t *testing.T, out, iface string) {
		seen := map[netip.Addr]bool{}
		for _, a := range parseDNS(out, iface, []netip.Addr{dns4}) {
			if !a.IsValid() || a == dns4 || seen[a] {
				t.Errorf("returned %v", a)
			}
			seen[a] = true
		}
	})
}

func mac() network {
	p := netip.MustParsePrefix
	return network{
		Links: []link{
			{"en0", 6, []netip.Prefix{p("192.168.1.20/24"), p("fe80::1234/64"), p("2001:db8::5/64")}},
			{"en1", 7, []netip.Prefix{p("10.0.0.5/8"), p("172.16.4.2/22"), p("203.0.113.4/24"), p("192.168.1.21/24")}},
			{"en2", 8, []netip.Prefix{p("10.1.2.3/32")}},
		},
		Default4: 7, Default6: 6,
	}
}

func TestChange(t *testing.T) {
	c := mac().change([]netip.Addr{dns4})
	if got, want := fmt.Sprint(c.LAN), "[172.16.4.0/22 192.168.1.0/24 fe80::/64]"; got != want {
		t.Errorf("LAN %s, want %s: no public range, not all of 10/8, nothing twice", got, want)
	}
	if !c.Up || !c.Has4 || !c.Has6 || c.Interface != "en1" {
		t.Errorf("change %+v", c)
	}
	six := network{Links: mac().Links, Default6: 6}
	if c := six.change(nil); !c.Up || c.Has4 || c.Interface != "en0" {
		t.Errorf("IPv6 only: %+v", c)
	}
	if c := (network{Links: mac().Links}).change(nil); c.Up || c.Interface != "" {
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
		if a, loopback := destination(address); !loopback {
			got = mac().via(a, family[3] == '6')
		}
		if got != want {
			t.Errorf("%s leaves by %d, want %d", dst, got, want)
		}
	}
}
