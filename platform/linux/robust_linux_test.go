package linux

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
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

// FT-14: with the disk full `up` fails and leaves no trace, and `down` works;
// half a record in the journal is not built upon.
func TestDiskFull(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	state := m.options().StateDir
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", state)
	t.Cleanup(func() { run(t, "umount", "-l", state) })
	h := m.open(t)
	before := m.snapshot()
	filler := filepath.Join(state, "filler")
	_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600) // until it is full
	cfg := everything()
	dev, err := h.OpenTUN(platform.TUNConfig{Name: cfg.TUN, MTU: cfg.MTU, Addr4: cfg.Addr4, Addr6: cfg.Addr6})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(context.Background(), cfg); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("apply with a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600)
	h.mu.Lock()
	h.journal.close()
	h.journal.file = full
	h.mu.Unlock()
	if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
		t.Errorf("down with a full disk: %v", err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	equalState(t, "after down with a full disk", m.snapshot(), before)
}

// What is read-only at the moment of `down` is told, and comes back with the
// next change, or the next start.
func TestDownWithReadOnlyEtc(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	etc := filepath.Dir(m.sys.resolvConf)
	run(t, "mount", "--bind", etc, etc)
	t.Cleanup(func() { run(t, "umount", "-l", etc) })
	before := read(t, m.sys.resolvConf)
	h := m.open(t)
	up(t, h)
	run(t, "mount", "-o", "remount,ro,bind", etc)
	err := h.Apply(context.Background(), platform.NetConfig{})
	if err == nil || !strings.Contains(err.Error(), m.sys.resolvConf+" still names our resolver") || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("down: %v, want what is left and why", err)
	}
	if rules := run(t, "ip", "rule"); strings.Contains(rules, "proto 65") || strings.Contains(rules, "5330:") {
		t.Errorf("rules are left:\n%s", rules)
	}
	run(t, "mount", "-o", "remount,rw,bind", etc)
	run(t, "ip", "addr", "add", "192.168.9.9/24", "dev", "eth0")
	waitFor(t, "the former resolv.conf", func() bool { return read(t, m.sys.resolvConf) == before })
}

// FT-16: a TUN that was set down, or robbed of its addresses, works again.
func TestTUNComesBack(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	for _, line := range []string{
		"ip link set atlantic0 down", "ip addr flush dev atlantic0", "ip link set atlantic0 mtu 1280",
	} {
		run(t, strings.Fields(line)...)
		waitFor(t, "repair of "+line, func() bool {
			link := run(t, "ip", "addr", "show", "dev", "atlantic0")
			return strings.Contains(link, "UP") && strings.Contains(link, "198.18.0.1/15") &&
				strings.Contains(link, "fd61:746c:616e:7469::1/64") && strings.Contains(link, "mtu 1500") &&
				strings.Contains(run(t, "ip", "route", "show", "table", "7891"), "atlantic0") &&
				strings.Contains(run(t, "ip", "-6", "route", "show", "table", "7891"), "atlantic0")
		})
	}
	if routeOf(t, "203.0.113.9") != "atlantic0" || routeOf(t, "2001:db8::9") != "atlantic0" {
		t.Error("traffic leaves past the tun")
	}
	time.Sleep(2 * mergeChanges)
	h.mu.Lock()
	rest := h.repairs.Tokens()
	h.mu.Unlock()
	time.Sleep(3 * mergeChanges)
	if now := h.repairs.Tokens(); now < rest {
		t.Errorf("repairs go on by themselves: %.1f of the allowance left, %.1f before", now, rest)
	}
}

// One repair that fails (resolv.conf cannot be read) does not hold up another.
func TestRepairsTheRest(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	ours := read(t, m.sys.resolvConf)
	writeFile(t, m.sys.resolvConf, strings.Repeat("# long\n", maxResolvConf))
	run(t, "ip", "rule", "del", "pref", "5330")
	waitFor(t, "the rule again", func() bool { return strings.Contains(run(t, "ip", "rule"), "5330:") })
	writeFile(t, m.sys.resolvConf, ours)
}

// A daemon that resolvconf's hooks start keeps its output open; nobody waits.
func TestResolvconfHookThatStays(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	program := filepath.Join(m.dir, "resolvconf")
	writeFile(t, program, "#!/bin/sh\nsleep 20 &\necho $! >>"+m.dir+"/pids\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run(t, "sh", "-c", "kill $(cat "+m.dir+"/pids)") })
	begin := time.Now()
	if err := runResolvconf(program, "-a", op{Dev: "atlantic0"}); err != nil {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("waited %v for a daemon", took)
	}
}

// FT-18: a container's /proc/sys is read-only. Where a sysctl has to be set, the
// error says how to start the container; otherwise all is well.
func TestReadOnlyProcSys(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	strict := []string{"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/eth0/rp_filter"}
	for _, key := range strict {
		if err := writeSysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	h := m.open(t)
	cfg := everything()
	cfg.TUN = "vpn.0" // and what CONFIG.md allows as a name works
	if _, err := h.OpenTUN(platform.TUNConfig{Name: cfg.TUN, MTU: cfg.MTU, Addr4: cfg.Addr4, Addr6: cfg.Addr6}); err != nil {
		t.Fatal(err)
	}
	readOnly := func(mode string) { run(t, "mount", "-o", "remount,"+mode+",bind", "/proc/sys") }
	run(t, "mount", "--bind", "/proc/sys", "/proc/sys")
	readOnly("ro")
	before := m.snapshot()
	err := h.Apply(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), "--sysctl net.ipv4.conf.all.src_valid_mark=1") {
		t.Errorf("apply: %v, want an error that says what to do", err)
	}
	equalState(t, "after a failed Apply", m.snapshot(), before)
	readOnly("rw")
	for _, key := range strict {
		if err := writeSysctl(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	readOnly("ro")
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Errorf("apply without strict checks: %v", err)
	}
}

// What comes in for the addresses of the TUN is this machine's own as soon as
// OpenTUN returns.
func TestTUNIsReadyAtOnce(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h, cfg := newMachine(t).open(t), everything()
	for i := range 50 {
		d, err := h.OpenTUN(platform.TUNConfig{Name: cfg.TUN, MTU: cfg.MTU, Addr4: cfg.Addr4, Addr6: cfg.Addr6})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []netip.Prefix{cfg.Addr4, cfg.Addr6} {
			routes, err := netlink.RouteGet(p.Addr().AsSlice())
			if err != nil || len(routes) != 1 || routes[0].Type != unix.RTN_LOCAL {
				t.Fatalf("device %d: packets to %s go by %v (%v)", i, p.Addr(), routes, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A pipeline that broke is made anew: the device has the same name, and the
// routes of the former one went with it.
func TestApplyToANewDevice(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	h.mu.Lock()
	old := h.tuns[0]
	h.mu.Unlock()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	up(t, h)
	// At once, not when the monitor has seen it.
	for _, to := range []string{"203.0.113.9", "2001:db8::9"} {
		if got := routeOf(t, to); got != "atlantic0" {
			t.Errorf("%s leaves by %s", to, got)
		}
	}
}

func TestReplaceable(t *testing.T) {
	for err, want := range map[error]bool{nil: true, unix.ENOENT: true, unix.EACCES: true, unix.EROFS: false, unix.EPERM: false} {
		if got := replaceable(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// Fake addresses that are real ones here are told, whenever that comes about.
func TestFakeRangeInTheLAN(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	h := newMachine(t).open(t)
	cfg := everything()
	cfg.Addr4 = netip.MustParsePrefix("10.64.0.1/12")
	if _, err := h.OpenTUN(platform.TUNConfig{Name: cfg.TUN, MTU: cfg.MTU, Addr4: cfg.Addr4}); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if w := h.Warnings(); len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	run(t, "ip", "addr", "add", "10.70.1.2/24", "dev", "eth0")
	waitFor(t, "a warning", func() bool {
		w := h.Warnings()
		return len(w) == 1 && strings.Contains(w[0], "10.70.1.0/24") && strings.Contains(w[0], "fake_range")
	})
}

// A state directory that cannot be written keeps neither a start nor a rescue
// from undoing what is in force.
func TestReadOnlyStateIsUndone(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for name, undo := range map[string]func(m machine) error{
		"start": func(m machine) error {
			h, err := newHost(slog.New(slog.DiscardHandler), m.options(), m.sys)
			if err == nil {
				err = h.Close()
			}
			return err
		},
		"rescue": func(m machine) error { return rescue(slog.New(slog.DiscardHandler), m.options(), m.sys) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			before := m.snapshot()
			_ = m.killedAt(24).Run()
			if m.snapshot() == before {
				t.Fatal("nothing was left behind, so nothing is tested")
			}
			state := m.options().StateDir
			run(t, "mount", "--bind", "-o", "ro", state, state)
			run(t, "mount", "-o", "remount,ro,bind", state)
			t.Cleanup(func() { run(t, "umount", "-l", state) })
			if err := undo(m); err != nil {
				t.Error(err)
			}
			equalState(t, "after a "+name+" with a read-only state", m.snapshot(), before)
			if err := undo(m); err != nil {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

// Captures is what the kernel says, not what was applied.
func TestCaptures(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	captures := func(when, want string) {
		t.Helper()
		err := h.Captures()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", when, err, want)
		}
	}
	captures("before anything", "no device of ours")
	up(t, h)
	captures("up", "")
	for _, c := range []struct{ make, take, says string }{
		{"ip rule add pref 10 lookup main", "ip rule del pref 10 lookup main", "packets to 2.2.2.2 leave by eth0"},
		{"ip -6 rule add pref 10 lookup main", "ip -6 rule del pref 10 lookup main", "packets to 2400::2 leave by eth0"},
		{"ip rule add pref 10 to 128.0.0.0/1 lookup main", "ip rule del pref 10 to 128.0.0.0/1 lookup main", "packets to 200.2.2.2 leave by eth0"},
	} {
		run(t, strings.Fields(c.make)...)
		captures(c.make, c.says)
		run(t, strings.Fields(c.take)...)
		captures(c.take, "")
	}
	if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
		t.Fatal(err)
	}
	captures("down", "no device of ours")
}
