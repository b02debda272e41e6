package linux

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

func TestConformance(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	defer goleak.VerifyNone(t)
	m := newMachine(t)
	platformtest.Run(t, func() platform.Host { return m.open(t) }, m.snapshot)
}

func TestConformanceWithoutNFT(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	m.sys.noNFT = true
	for _, name := range []string{"all", "eth0"} {
		if err := writeSysctl("net/ipv4/conf/"+name+"/rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
	}
	platformtest.Run(t, func() platform.Host { return m.open(t) }, m.snapshot)
}

const (
	crashEnv    = "ATLANTIC_TEST_CRASH_AT"
	crashDirEnv = "ATLANTIC_TEST_CRASH_DIR"

	allMade = 0 // in crashEnv: after everything was made
)

// crash takes everything and gives it back, and kills the process at the change
// that crashEnv counts to.
func crash(t *testing.T) {
	at, err := strconv.Atoi(os.Getenv(crashEnv))
	if err != nil {
		t.Fatal(err)
	}
	m := crashMachine(os.Getenv(crashDirEnv))
	kill := func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	n := 0
	m.sys.fault = func() {
		if n++; n == at {
			kill()
		}
	}
	h := m.open(t)
	up(t, h)
	if at == allMade {
		kill()
	}
	cfg := everything()
	cfg.LAN, cfg.Redirect, cfg.LinkDNS = false, 7777, 5399
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func crashMachine(dir string) machine {
	return machine{dir: dir, sys: system{
		resolvConf: filepath.Join(dir, "etc", "resolv.conf"),
		bus:        "unix:path=" + filepath.Join(dir, "no-bus"),
		hostname:   func() (string, error) { return "pc", nil },
	}}
}

// killedAt runs crash in a process that is killed at that change. TestKilledAnywhere
// answers to it.
func (m machine) killedAt(change int) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAnywhere$")
	cmd.Env = append(os.Environ(), crashEnv+"="+strconv.Itoa(change), crashDirEnv+"="+m.dir)
	return cmd
}

// CR-01: killed before or after any change, the next start and stop leave the
// machine as it was before the first.
func TestKilledAnywhere(t *testing.T) {
	if os.Getenv(crashEnv) != "" {
		crash(t)
		return
	}
	if !inNamespace(t) {
		return
	}
	if err := writeSysctl("net/ipv4/conf/all/rp_filter", "1"); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	before := m.snapshot()
	step := 4 // every kind of change is met, before and after
	if os.Getenv("ATLANTIC_TEST_FULL") != "" {
		step = 1
	}
	for at := 1; ; at += step {
		cmd := m.killedAt(at)
		out, err := cmd.CombinedOutput()
		killed := errors.As(err, new(*exec.ExitError)) && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("at point %d: %v\n%s", at, err, out)
		}
		h := m.open(t)
		if err := h.Close(); err != nil {
			t.Fatalf("after a kill at point %d: close: %v", at, err)
		}
		equalState(t, "after a kill at point "+strconv.Itoa(at), m.snapshot(), before)
		if t.Failed() {
			return
		}
		if !killed {
			if at < 60 {
				t.Errorf("only %d points were reached", at)
			}
			t.Logf("%d points", at)
			return
		}
	}
}

// CR-02: killed again while it recovers.
func TestKilledDuringRecovery(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	before := m.snapshot()
	for _, at := range []int{12, 30, 5, 33, 12, 2, 1, 9} { // the first two while it makes, the others while it undoes or makes again
		_ = m.killedAt(at).Run()
	}
	h := m.open(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	equalState(t, "after kills during recovery", m.snapshot(), before)
}

// A journal that cannot be used keeps neither a start nor a rescue from
// restoring the machine, by what can be read of it and by the names of our
// objects; a start tells.
func TestRescueWithDamagedJournal(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	before := m.snapshot()
	_ = m.killedAt(allMade).Run()
	if rules := run(t, "ip", "rule"); !strings.Contains(rules, "5330:") || !strings.Contains(read(t, m.sys.resolvConf), "198.18.0.2") {
		t.Fatalf("the crash came before everything was made:\n%s", rules)
	}
	path := filepath.Join(m.options().StateDir, journalName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	lines[4] = "garbage\n"
	writeFile(t, path, strings.Join(lines, ""))
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	damaged := read(t, path)
	h := m.open(t)
	if w := h.Warnings(); len(w) == 0 || !strings.Contains(w[0], "line 5 is damaged") {
		t.Errorf("warnings: %q", w)
	}
	h.Close()
	equalState(t, "after a start", m.snapshot(), before)
	if got := read(t, path+".damaged"); got != damaged {
		t.Error("the damaged journal was not put aside as it was")
	}
	_ = os.Remove(path + ".damaged")

	_ = m.killedAt(24).Run()
	writeFile(t, path, damaged)
	if err := rescue(log, m.options(), m.sys); err != nil {
		t.Fatalf("rescue: %v", err)
	}
	equalState(t, "after rescue", m.snapshot(), before)
	m.open(t).Close()

	// Without any journal resolv.conf itself says what it was.
	_ = m.killedAt(allMade).Run()
	if !strings.Contains(read(t, m.sys.resolvConf), "198.18.0.2") {
		t.Fatal("the crash came before resolv.conf was written")
	}
	if err := os.RemoveAll(m.options().StateDir); err != nil {
		t.Fatal(err)
	}
	if err := rescue(log, m.options(), m.sys); err != nil {
		t.Errorf("rescue without a journal: %v", err)
	}
	equalState(t, "after rescue without a journal", m.snapshot(), before)
	if rules := run(t, "ip", "rule"); strings.Contains(rules, "5330:") {
		t.Errorf("rescue without a journal left rules:\n%s", rules)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if _, err := newHost(log, m.options(), m.sys); !errors.Is(err, platform.ErrRunning) {
		t.Errorf("second: %v, want ErrRunning", err)
	}
	if err := rescue(log, m.options(), m.sys); !errors.Is(err, platform.ErrRunning) {
		t.Errorf("rescue beside a service: %v, want ErrRunning", err)
	}
	// Nor with a state directory of its own: it would take the first one's rules
	// for a crashed run's.
	up(t, h)
	other := platform.Options{StateDir: filepath.Join(m.dir, "other")}
	rules := run(t, "ip", "rule")
	if _, err := newHost(log, other, m.sys); !errors.Is(err, platform.ErrRunning) {
		t.Errorf("second with another state directory: %v, want ErrRunning", err)
	}
	if err := rescue(log, other, m.sys); !errors.Is(err, platform.ErrRunning) {
		t.Errorf("rescue with another state directory: %v, want ErrRunning", err)
	}
	if now := run(t, "ip", "rule"); now != rules {
		t.Errorf("the second one changed the rules:\n%s", now)
	}
	h.Close()
	m.open(t).Close()
}

// Whoever could write in the state directory could steer the service.
func TestForeignStateDirectoryIsRefused(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	dir := m.options().StateDir
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	refused := func(says string) {
		t.Helper()
		h, err := newHost(log, m.options(), m.sys)
		if err == nil {
			h.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	refused("others may write")
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 12345, 0)); err != nil {
		t.Fatal(err)
	}
	refused("belongs to user 12345")
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	m.open(t).Close()
}

// CR-05 and CR-06: what others made before or during our time stays.
func TestForeignObjectsStay(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	for _, line := range []string{
		"ip rule add pref 5270 lookup 52", "ip route add 100.100.100.100 dev eth0 table 52",
		"ip rule add pref 5310 to 203.0.113.0/24 lookup main", // between ours
		"ip rule add pref 32764 lookup main suppress_prefixlength 0",
		"ip rule add pref 32765 not fwmark 51820 lookup 51820",
		"ip route add 203.0.113.0/24 dev eth0 table 7891", // even in our table
		"nft add table inet atlantic-other",
	} {
		run(t, strings.Fields(line)...)
	}
	before := m.snapshot()
	h := m.open(t)
	up(t, h)
	run(t, "ip", "route", "add", "198.51.100.0/24", "via", "192.168.7.9")
	run(t, "nft", "add", "table", "ip", "admin")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "route", "del", "198.51.100.0/24", "via", "192.168.7.9") // fails if it is gone
	run(t, "nft", "delete", "table", "ip", "admin")
	equalState(t, "after close", m.snapshot(), before)
}

func TestAllOrNothing(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	cfg := everything()
	if _, err := h.OpenTUN(platform.TUNConfig{Name: cfg.TUN, MTU: cfg.MTU, Addr4: cfg.Addr4, Addr6: cfg.Addr6}); err != nil {
		t.Fatal(err)
	}
	before := m.snapshot()
	// The last change fails: a directory in the place of resolv.conf.
	conf := m.sys.resolvConf
	if err := os.Rename(conf, conf+".aside"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(context.Background(), cfg); err == nil {
		t.Fatal("Apply succeeded with a directory as resolv.conf")
	}
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(conf+".aside", conf); err != nil {
		t.Fatal(err)
	}
	equalState(t, "after a failed Apply", m.snapshot(), before)
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Errorf("Apply after the cause is gone: %v", err)
	}
}

// CR-10, shortened: on and off again and again leaves nothing and grows nothing.
func TestManyTimes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	before := m.snapshot()
	cycle := func() {
		up(t, h)
		if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
			t.Fatal(err)
		}
		h.mu.Lock()
		dev := h.tuns[len(h.tuns)-1]
		h.mu.Unlock()
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	cycle()
	open := files()
	for range 10 {
		cycle()
	}
	if now := files(); now > open {
		t.Errorf("%d descriptors are open, %d after the first time", now, open)
	}
	if n := len(h.tuns); n > 1 {
		t.Errorf("%d devices are remembered", n)
	}
	equalState(t, "after many times", m.snapshot(), before)
	if _, err := os.Stat(filepath.Join(m.options().StateDir, journalName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is not gone: %v", err)
	}
}
