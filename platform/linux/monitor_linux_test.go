package linux

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// LK-23 for what this package owns: one layer at a time is taken away and comes
// back.
func TestRepairs(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	whole := m.snapshot()
	for _, line := range []string{
		"ip rule del pref 5330", "ip rule del pref 5300", "ip -6 rule del pref 5305", "ip rule flush",
		"ip route flush table 7891", "ip -6 route flush table 7891",
		"nft flush ruleset", "nft delete table inet atlantic",
	} {
		run(t, strings.Fields(line)...)
		if line == "ip rule flush" { // takes main and default too, which are not ours to mend
			run(t, "ip", "rule", "add", "pref", "32766", "lookup", "main")
			run(t, "ip", "rule", "add", "pref", "32767", "lookup", "default")
			whole = strings.ReplaceAll(whole, "proto kernel", "")
		}
		begin := time.Now()
		waitFor(t, "repair of "+line, func() bool {
			now := m.snapshot()
			return strings.Count(now, `"priority":53`) == strings.Count(whole, `"priority":53`) &&
				strings.Count(now, `"table":"7891"`) == strings.Count(whole, `"table":"7891"`) &&
				strings.Count(now, `"inet"`) >= strings.Count(whole, `"inet"`) &&
				strings.Contains(now, `"atlantic"`)
		})
		t.Logf("%s: repaired in %v", line, time.Since(begin).Round(time.Millisecond))
	}
	if got := routeOf(t, "203.0.113.9"); got != "atlantic0" {
		t.Errorf("traffic leaves by %s", got)
	}
}

func TestChangesAndLAN(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	first := h.Uplink()
	want := platform.NetChange{
		Up: true, Interface: "eth0", Has4: true, Has6: true,
		DNS:  []netip.Addr{netip.MustParseAddr("192.168.7.1")},
		LAN:  []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("fd00:7::/64")},
		Self: []netip.Addr{netip.MustParseAddr("192.168.7.2"), netip.MustParseAddr("fd00:7::2"), netip.MustParseAddr("fe80::2")}, Search: []string{"lan.example"},
	}
	if !sameChange(first, want) {
		t.Errorf("uplink %+v\nwant   %+v", first, want)
	}

	next := func(what string, ok func(platform.NetChange) bool) {
		t.Helper()
		timeout := time.After(3 * time.Second)
		for {
			select {
			case c := <-h.Changes():
				if ok(c) {
					return
				}
			case <-timeout:
				t.Fatalf("no change told of: %s; uplink %+v", what, h.Uplink())
			}
		}
	}
	lan := netip.MustParsePrefix("192.168.99.0/24")
	run(t, "ip", "addr", "add", "192.168.99.5/24", "dev", "eth0")
	next("a new subnet", func(c platform.NetChange) bool { return slices.Contains(c.LAN, lan) })
	if got := routeOf(t, "192.168.99.9"); got != "eth0" {
		t.Errorf("the new subnet leaves by %s", got)
	}
	run(t, "ip", "addr", "add", "203.0.113.77/24", "dev", "eth0") // TunnelCrack: a public "LAN"
	run(t, "ip", "addr", "del", "192.168.99.5/24", "dev", "eth0")
	next("the subnet gone", func(c platform.NetChange) bool { return !slices.Contains(c.LAN, lan) })
	if got := routeOf(t, "203.0.113.9"); got != "atlantic0" {
		t.Errorf("a public range that claims to be attached leaves by %s", got)
	}
	run(t, "ip", "route", "del", "default")
	next("no IPv4", func(c platform.NetChange) bool { return c.Up && !c.Has4 && c.Has6 })
	run(t, "ip", "link", "set", "eth0", "down")
	next("nothing", func(c platform.NetChange) bool { return !c.Up && c.Interface == "" && len(c.LAN) == 0 })
	run(t, "ip", "link", "set", "eth0", "up")
	run(t, "ip", "route", "add", "default", "via", "192.168.7.1")
	next("IPv4 again", func(c platform.NetChange) bool { return c.Has4 && c.Interface == "eth0" })
}

// A burst of events is one change, and does not wear out the monitor.
func TestBurstsAreMerged(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	for range 20 {
		run(t, "ip", "addr", "add", "192.168.99.5/24", "dev", "eth0")
		run(t, "ip", "addr", "del", "192.168.99.5/24", "dev", "eth0")
	}
	time.Sleep(2 * mergeChanges)
	if n := len(h.Changes()); n > 1 {
		t.Errorf("%d changes wait", n)
	}
	before := m.snapshot()
	time.Sleep(2 * mergeChanges)
	equalState(t, "after the burst", m.snapshot(), before)
}
