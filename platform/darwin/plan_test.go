package darwin

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	addr4 = netip.MustParsePrefix("198.18.0.1/15")
	addr6 = netip.MustParsePrefix("fd61:746c:616e:7469::1/64")
	dns4  = netip.MustParseAddr("198.18.0.2")
	dns6  = netip.MustParseAddr("fd61:746c:616e:7469::2")
	home  = facts{LAN: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}}
)

func full() platform.NetConfig {
	return platform.NetConfig{TUN: "utun4", Addr4: addr4, Addr6: addr6, MTU: 1500, Default4: true, Default6: true, LAN: true, DNS: []netip.Addr{dns4, dns6}}
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

// script is what goes up and, after a line, what comes down again.
func script(cfg platform.NetConfig, f facts) string {
	var b strings.Builder
	_, add := physical.Diff(nil, plan(cfg, f), object.equal)
	for _, o := range add {
		fmt.Fprintln(&b, o.add())
	}
	fmt.Fprintln(&b, "---")
	remove, _ := physical.Diff(add, nil, object.equal)
	for _, o := range remove {
		fmt.Fprintln(&b, o.remove())
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	four := full()
	four.Default6, four.DNS = false, []netip.Addr{dns4}
	noLAN := full()
	noLAN.LAN, noLAN.DNS = false, nil
	for name, cfg := range map[string]platform.NetConfig{"full": full(), "ipv4-only": four, "no-lan": noLAN, "zero": {}} {
		t.Run(name, func(t *testing.T) { golden(t, name, script(cfg, home)) })
	}
}

func TestPlanTUN(t *testing.T) {
	var b strings.Builder
	for _, c := range planTUN("utun4", platform.TUNConfig{MTU: 1500, Addr4: addr4, Addr6: addr6}) {
		fmt.Fprintln(&b, c)
	}
	golden(t, "tun", b.String())
}

func TestDiffTouchesOnlyWhatDiffers(t *testing.T) {
	have := plan(full(), home)
	if remove, add := physical.Diff(have, plan(full(), home), object.equal); len(remove)+len(add) != 0 {
		t.Errorf("the same again: remove %v, add %v", remove, add)
	}
	narrow := full()
	narrow.DNS = []netip.Addr{dns4}
	remove, add := physical.Diff(have, plan(narrow, home), object.equal)
	if len(remove) != 1 || len(add) != 1 || len(remove[0].DNS) != 2 || len(add[0].DNS) != 1 {
		t.Errorf("new resolver: remove %v, add %v", remove, add)
	}
}
