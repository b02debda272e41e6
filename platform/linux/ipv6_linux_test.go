package linux

import (
	"strings"
	"testing"
)

func setIPv6(t *testing.T, name, disabled string) {
	t.Helper()
	if err := writeSysctl("net/ipv6/conf/"+name+"/disable_ipv6", disabled); err != nil {
		t.Fatal(err)
	}
}

// plugIn makes another interface with IPv6 and a default route of its own.
func plugIn(t *testing.T) {
	t.Helper()
	for _, line := range []string{
		"ip link add eth1 type veth peer name far1", "ip link set eth1 addrgenmode none up", "ip link set far1 up",
	} {
		run(t, strings.Fields(line)...)
	}
	setIPv6(t, "eth1", "0")
	run(t, "ip", "-6", "addr", "add", "fd00:9::2/64", "dev", "eth1", "nodad")
	run(t, "ip", "-6", "route", "add", "default", "via", "fd00:9::1", "dev", "eth1", "metric", "5")
}

// TR-02: conf/all/disable_ipv6 is no summary. IPv6 packets enter the TUN if any
// interface has IPv6, whatever the other switches say.
func TestIPv6OnAtTheUplinkAlone(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setIPv6(t, "all", "1")
	setIPv6(t, "eth0", "0")
	run(t, "ip", "-6", "addr", "add", "fd00:7::2/64", "dev", "eth0", "nodad")
	run(t, "ip", "-6", "route", "add", "default", "via", "fd00:7::1", "dev", "eth0")
	up(t, newMachine(t).open(t))
	if got := routeOf(t, "2001:db8::9"); got != "atlantic0" {
		t.Errorf("IPv6 leaves by %s", got)
	}
	if addr := run(t, "ip", "-6", "addr", "show", "dev", "atlantic0"); !strings.Contains(addr, "fd61:") {
		t.Errorf("the TUN has no IPv6 address:\n%s", addr)
	}
}

// Switched on while we are on, not even the first packet leaves past the TUN:
// the route and the rules are there before.
func TestIPv6SwitchedOnLater(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setIPv6(t, "all", "1")
	setIPv6(t, "default", "1")
	up(t, newMachine(t).open(t))
	if addr := run(t, "ip", "-6", "addr", "show", "dev", "atlantic0"); strings.Contains(addr, "fd61:") {
		t.Errorf("IPv6 is off everywhere, and the TUN has an address:\n%s", addr)
	}
	plugIn(t)
	if got := routeOf(t, "2001:db8::9"); got != "atlantic0" {
		t.Errorf("IPv6 of an interface that appeared later leaves by %s", got)
	}
	waitFor(t, "an IPv6 address of the TUN", func() bool {
		return strings.Contains(run(t, "ip", "-6", "addr", "show", "dev", "atlantic0"), "fd61:")
	})
	setIPv6(t, "atlantic0", "1")       // takes the TUN's address and route
	waitFor(t, "repair", func() bool { // unreachable meanwhile
		device, _ := lookUp("2001:db8::9")
		return device == "atlantic0"
	})
}

// In a container /proc/sys may be read-only and IPv6 off for new devices, ours
// too: what cannot be carried is refused.
func TestIPv6WhereTheTUNTakesNone(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setIPv6(t, "default", "1")
	run(t, "mount", "--bind", "/proc/sys", "/proc/sys")
	run(t, "mount", "-o", "remount,ro,bind", "/proc/sys")
	m := newMachine(t)
	h := m.open(t)
	before := m.snapshot()
	up(t, h)
	if got, err := lookUp("2001:db8::9"); err == nil {
		t.Errorf("IPv6 leaves: %s", got)
	}
	if got := routeOf(t, "fd00:7::77"); got != "eth0" {
		t.Errorf("the LAN is reached by %s", got)
	}
	run(t, "ip", "-6", "route", "flush", "table", "7891")
	waitFor(t, "repair", func() bool { _, err := lookUp("2001:db8::9"); return err != nil })
	h.Close()
	equalState(t, "after close", m.snapshot(), before)
}
