package linux

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

func runLines(t *testing.T, lines string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		run(t, strings.Fields(line)...)
	}
}

// otherTunnel makes wg0 as wg-quick does for a company's network: addresses, and
// routes in the main table.
const otherTunnel = `
ip tuntap add wg0 mode tun
ip addr add 10.9.0.2/32 dev wg0
ip -6 addr add fd09::2/128 dev wg0 nodad
ip link set wg0 up
ip route add 10.9.0.0/24 dev wg0
ip route add 203.0.113.128/25 dev wg0
ip -6 route add fd09::/64 dev wg0
ip -6 route add 2001:db8:9::/48 dev wg0`

func leaves(t *testing.T, when string, want map[string]string) {
	t.Helper()
	for to, device := range want {
		if got := routeOf(t, strings.Fields(to)...); got != device {
			t.Errorf("%s, %s leaves by %s, want %s", when, to, got, device)
		}
	}
}

// Another tunnel's networks stay its own, whether it came before us or after,
// and its outer packets, which it marks, leave as if we were not there.
func TestOtherNetworks(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	theirs := map[string]string{
		"10.9.0.5": "wg0", "203.0.113.200": "wg0", "fd09::5": "wg0", "2001:db8:9::5": "wg0",
		"10.9.0.53 ipproto udp dport 53": "wg0", "fd09::53 ipproto tcp dport 53": "wg0", // its resolver
		"203.0.113.9": "atlantic0", "2001:db8::9": "atlantic0", "10.9.1.5": "atlantic0",
		"203.0.113.9 mark 51820": "eth0", "2001:db8::9 mark 51820": "eth0",
	}
	runLines(t, otherTunnel)
	before := m.snapshot()
	h := m.open(t)
	up(t, h)
	leaves(t, "before up", theirs)
	cfg := everything()
	cfg.LAN = false // of the uplink
	applyTo(t, h, cfg)
	theirs["192.168.7.77"], theirs["fd00:7::77"] = "atlantic0", "atlantic0"
	leaves(t, "without lan", theirs)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	equalState(t, "after close", m.snapshot(), before)
}

func TestOtherNetworksAreTracked(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newMachine(t).open(t)
	up(t, h)
	ours := map[string]string{"10.9.0.5": "atlantic0", "203.0.113.200": "atlantic0", "fd09::5": "atlantic0", "2001:db8:9::5": "atlantic0"}
	leaves(t, "without it", ours)
	runLines(t, otherTunnel)
	waitFor(t, "the other tunnel's routes", func() bool { return routeOf(t, "2001:db8:9::5") == "wg0" && routeOf(t, "203.0.113.200") == "wg0" })
	leaves(t, "after up", map[string]string{"10.9.0.5": "wg0", "fd09::5": "wg0", "10.9.1.5": "atlantic0"})
	want := platform.Network{Interface: "wg0", Prefixes: []netip.Prefix{
		netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("203.0.113.128/25"),
		netip.MustParsePrefix("2001:db8:9::/48"), netip.MustParsePrefix("fd09::/64"), netip.MustParsePrefix("fd09::2/128"),
	}}
	waitFor(t, "the uplink to tell of it", func() bool {
		return sameChange(platform.NetChange{Others: h.Uplink().Others}, platform.NetChange{Others: []platform.Network{want}})
	})
	run(t, "ip", "route", "del", "203.0.113.128/25", "dev", "wg0")
	waitFor(t, "a route of it to go", func() bool { return routeOf(t, "203.0.113.200") == "atlantic0" })
	run(t, "ip", "link", "del", "wg0")
	leaves(t, "in the moment that it goes", ours)
	runLines(t, otherTunnel)
	waitFor(t, "its return", func() bool { return routeOf(t, "2001:db8:9::5") == "wg0" && routeOf(t, "10.9.0.5") == "wg0" })
}

// LK-08: what a DHCP server injects at an uplink (option 121) takes nothing out
// of the TUN, nor out of another tunnel: not a half of the Internet, not a single
// address, not by a second interface that has its address on lease.
func TestInjectedRoutes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	runLines(t, otherTunnel)
	runLines(t, `
ip link add wlan0 type veth peer name far1
ip link set far1 up
ip link set wlan0 up
ip addr add 192.168.20.9/24 dev wlan0 valid_lft 3600 preferred_lft 3600`)
	h := newMachine(t).open(t)
	up(t, h)
	runLines(t, `
ip route add 0.0.0.0/1 via 192.168.7.66
ip route add 128.0.0.0/1 via 192.168.7.66
ip route add 203.0.113.9/32 via 192.168.7.66
ip route add 10.9.0.128/25 via 192.168.7.66
ip route add 198.51.100.0/24 via 192.168.20.66
ip -6 route add 2000::/3 via fd00:7::66
ip -6 route add 2001:db8::9/128 via fd00:7::66`)
	waitFor(t, "a look around", func() bool { return !h.resync(context.Background()) })
	leaves(t, "with injected routes", map[string]string{
		"203.0.113.9": "atlantic0", "8.8.8.8": "atlantic0", "198.51.100.7": "atlantic0",
		"2001:db8::9": "atlantic0", "2606::1": "atlantic0",
		"10.9.0.200": "wg0", "10.9.0.5": "wg0",
	})
}

// A VPN that takes everything is no network beside us: who comes first, and what
// to do about it, is told.
func TestAnotherTunnelTakesEverything(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newMachine(t).open(t)
	up(t, h)
	warned := func(text string) func() bool {
		return func() bool { return strings.Contains(strings.Join(h.Warnings(), "\n"), text) }
	}
	// An uplink of a container without rights is a tap: no tunnel.
	runLines(t, `
ip tuntap add tap0 mode tap
ip addr add 10.0.2.100/24 dev tap0
ip link set tap0 up
ip route replace default via 10.0.2.2 dev tap0`)
	waitFor(t, "the tap as the uplink", func() bool { return h.Uplink().Interface == "tap0" })
	h.resync(context.Background())
	if w := h.Warnings(); len(w) > 0 {
		t.Errorf("with a tap: %q", w)
	}
	runLines(t, `
ip link del tap0
ip route add default via 192.168.7.1`)

	runLines(t, `
ip tuntap add tun9 mode tun
ip addr add 10.8.0.2/24 dev tun9
ip link set tun9 up
ip route add 0.0.0.0/1 dev tun9
ip route add 128.0.0.0/1 dev tun9`) // as OpenVPN does
	waitFor(t, "a warning that we are in it", warned("reached through tun9, another tunnel"))
	leaves(t, "with a full tunnel", map[string]string{"203.0.113.9": "atlantic0", "8.8.8.8": "atlantic0", "10.8.0.9": "tun9"})
	run(t, "ip", "link", "del", "tun9")
	waitFor(t, "the end of the warning", func() bool { return len(h.Warnings()) == 0 })

	runLines(t, wgQuick) // before our rules, as it comes later
	waitFor(t, "a warning that apps go another way", warned("leaves by wg1, not through AtlanticProxy"))
	leaves(t, "with wg-quick", map[string]string{"203.0.113.9 mark 51820": "eth0"})
}

// A crashed run's routes into another tunnel are no sign that a run is alive.
func TestKilledBesideAnotherTunnel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	runLines(t, otherTunnel)
	m := newMachine(t)
	before := m.snapshot()
	_ = m.killedAt(allMade).Run()
	if got := routeOf(t, "10.9.0.5"); got != "wg0" {
		t.Fatalf("before the kill the other network was reached by %s", got)
	}
	if err := os.RemoveAll(m.options().StateDir); err != nil { // nor is the journal needed
		t.Fatal(err)
	}
	h := m.open(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if rules := run(t, "ip", "rule"); strings.Contains(rules, "7891") {
		t.Errorf("rules are left:\n%s", rules)
	}
	if left := run(t, "sh", "-c", "ip route show table 7891 || true; ip -6 route show table 7891 || true; nft list ruleset"); strings.Contains(left, "dev") || strings.Contains(left, "atlantic") {
		t.Errorf("left:\n%s", left)
	}
	equalState(t, "after a kill", withoutResolvConf(m.snapshot()), withoutResolvConf(before))
}

func withoutResolvConf(s string) string {
	before, _, _ := strings.Cut(s, "resolv.conf:")
	return before
}

// wgQuick is what wg-quick does for AllowedIPs = 0.0.0.0/0.
const wgQuick = `
ip tuntap add wg1 mode tun
ip link set wg1 up
ip route add default dev wg1 table 51820
ip rule add not fwmark 51820 table 51820`

func TestAnotherTunnelComesAfterUs(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	runLines(t, wgQuick)
	h := newMachine(t).open(t)
	up(t, h)
	leaves(t, "after wg-quick", map[string]string{
		"203.0.113.9": "atlantic0", "203.0.113.9 mark 0x41540000": "eth0", "203.0.113.9 mark 51820": "eth0",
	})
	if w := h.Warnings(); len(w) != 1 || !strings.Contains(w[0], "comes before wg1") {
		t.Errorf("warnings: %q", w)
	}
}

// TR-02: strict reverse-path checks of an interface that appears while we are on
// have to see our mark too, whatever conf/all says.
func TestStrictInterfaceLater(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	up(t, newMachine(t).open(t))
	if err := writeSysctl("net/ipv4/conf/default/rp_filter", "1"); err != nil {
		t.Fatal(err)
	}
	runLines(t, `
ip link add eth1 type veth peer name far1
ip link set eth1 up`)
	waitFor(t, "src_valid_mark", func() bool {
		v, err := readSysctl("net/ipv4/conf/all/src_valid_mark")
		return err == nil && v == "1"
	})
}
