package windows

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	addr4 = netip.MustParsePrefix("198.18.0.1/15")
	addr6 = netip.MustParsePrefix("fd61:746c:616e:7469::1/64")
	dns4  = netip.MustParseAddr("198.18.0.2")
	dns6  = netip.MustParseAddr("fd61:746c:616e:7469::2")
)

// home is a machine whose router is its resolver; the second one is public and
// reached by the default route.
func home() facts {
	return facts{
		LAN: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		DNS: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fd00:1::1")},
	}
}

func full() platform.NetConfig {
	return platform.NetConfig{TUN: "atlantic0", Addr4: addr4, Addr6: addr6, MTU: 1500, Default4: true, Default6: true, LAN: true, DNS: []netip.Addr{dns4, dns6}}
}

// golden compares got with the file of that name in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%swant\n%s", path, got, want)
	}
}

func lines(ops []operation) string {
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	four := full()
	four.Default6, four.DNS = false, []netip.Addr{dns4}
	noLAN := full()
	noLAN.LAN = false
	noDNS := full()
	noDNS.DNS = nil
	for name, cfg := range map[string]platform.NetConfig{"full": full(), "ipv4-only": four, "no-lan": noLAN, "no-dns": noDNS, "zero": {}} {
		t.Run(name, func(t *testing.T) { golden(t, name, lines(plan(cfg, home()))) })
	}
}

func TestPlanTUN(t *testing.T) {
	golden(t, "tun", lines(planTUN(platform.TUNConfig{Name: "atlantic0", MTU: 1500, Addr4: addr4, Addr6: addr6})))
}

func TestHalves(t *testing.T) {
	for in, want := range map[string]string{
		"0.0.0.0/0": "[0.0.0.0/1 128.0.0.0/1]", "::/0": "[::/1 8000::/1]",
		"192.168.1.0/24": "[192.168.1.0/25 192.168.1.128/25]", "10.0.0.2/31": "[10.0.0.2/32 10.0.0.3/32]",
		"10.0.0.2/32": "[10.0.0.2/32]", "192.168.1.7/24": "[192.168.1.0/25 192.168.1.128/25]",
	} {
		if got := fmt.Sprint(halves(netip.MustParsePrefix(in))); got != want {
			t.Errorf("halves of %s: %s, want %s", in, got, want)
		}
	}
}

// IP_UNICAST_IF takes the index in network byte order, in the upper bytes.
func TestUnicastIF(t *testing.T) {
	for index, want := range map[int]int32{6: 0x06000000, 0x0102: 0x02010000, 0x80: -0x80000000} {
		if got := unicastIF(index); got != int(want) {
			t.Errorf("index %#x: %#x, want %#x", index, got, want)
		}
	}
}

func TestVia(t *testing.T) {
	p := netip.MustParsePrefix
	n := network{
		Links: []link{
			{"Ethernet", 6, []netip.Prefix{p("192.168.1.20/24"), p("2001:db8::5/64")}},
			{"Wi-Fi", 7, []netip.Prefix{p("10.0.0.5/8"), p("172.16.4.2/22"), p("203.0.113.4/24")}},
		},
		Default4: 7, Default6: 6,
	}
	for in, want := range map[string]int{
		"tcp4 8.8.8.8:53": 7, "tcp4 192.168.1.1:80": 6, "tcp6 [2606::1]:443": 6, "udp4 0.0.0.0:0": 7, "udp6 [::]:0": 6,
		"tcp4 127.0.0.1:1": -1, "tcp6 [::1]:1": -1,
	} {
		var network, address string
		fmt.Sscan(in, &network, &address)
		got := -1
		if a, loopback := destination(address); !loopback {
			got = n.via(a, network[3] == '6')
		}
		if got != want {
			t.Errorf("%s leaves by %d, want %d", in, got, want)
		}
	}
	c := n.change(nil)
	if got, want := fmt.Sprint(c.LAN), "[172.16.4.0/22 192.168.1.0/24]"; got != want {
		t.Errorf("LAN %s, want %s: no public range, not all of 10/8", got, want)
	}
	if !c.Up || !c.Has4 || !c.Has6 || c.Interface != "Wi-Fi" {
		t.Errorf("change %+v", c)
	}
}
