package linux

import (
	"context"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// LP-01: a socket of ours never enters the TUN, not even where the machine has
// no other way: no uplink at all, or none of that family.
func TestOurOwnPacketsNeverEnterTheTUN(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	run(t, "ip", "-6", "route", "del", "default")
	h := newMachine(t).open(t)
	up(t, h)
	refused := func(address string) {
		t.Helper()
		d := net.Dialer{Control: h.Control}
		c, err := d.DialContext(context.Background(), "udp", address) // a route is looked up, nothing is sent
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("%s: %v, want unreachable", address, err)
		}
	}
	refused("[2001:db8::9]:443")
	if got := routeOf(t, "203.0.113.9", "mark", "0x41540000"); got != "eth0" {
		t.Errorf("with an uplink our packets leave by %s", got)
	}
	run(t, "ip", "route", "del", "default")
	refused("203.0.113.9:443")
	for _, to := range []string{"203.0.113.9", "2001:db8::9"} {
		if got := routeOf(t, to); got != "atlantic0" {
			t.Errorf("an app's packet to %s leaves by %s", to, got)
		}
	}
	run(t, "ip", "rule", "del", "pref", "5301")
	run(t, "ip", "-6", "rule", "del", "pref", "5301")
	waitFor(t, "repair", func() bool {
		missing, err := func() (int, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			gone, err := h.missing()
			return len(gone), err
		}()
		return err == nil && missing == 0
	})
	refused("203.0.113.9:443")
	if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
		t.Fatal(err)
	}
}
