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

// IP_UNICAST_IF takes the index in network byte order, in the upper bytes.
func TestUnicastIF(t *testing.T) {
	for index, want := range map[int]int32{6: 0x06000000, 0x0102: 0x02010000, 0x80: -0x80000000} {
		if got := unicastIF(index); got != int(want) {
			t.Errorf("index %#x: %#x, want %#x", index, got, want)
		}
	}
}
