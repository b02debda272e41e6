package linux

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// inNamespace is nstest.Inside with a prepared machine.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if !nstest.Inside(t) {
		return false
	}
	prepareNamespace(t)
	return true
}

// prepareNamespace makes the machine of the tests: eth0 with a private subnet
// of both families, and a default route.
func prepareNamespace(t *testing.T) {
	t.Helper()
	run(t, "mount", "-t", "sysfs", "sysfs", "/sys")
	for _, line := range strings.Split(strings.TrimSpace(`
ip link set lo up
ip link add eth0 type veth peer name far0
ip link set eth0 addrgenmode none up
ip link set far0 addrgenmode none up
ip addr add 192.168.7.2/24 dev eth0
ip -6 addr add fe80::2/64 dev eth0 nodad
ip -6 addr add fd00:7::2/64 dev eth0 nodad
ip route add default via 192.168.7.1 dev eth0
ip -6 route add default via fd00:7::1 dev eth0`), "\n") {
		run(t, strings.Fields(line)...)
	}
	waitFor(t, "both ends of the link", func() bool {
		return strings.Count(run(t, "ip", "link"), "state UP") == 2 && strings.Contains(run(t, "ip", "-6", "route"), "default")
	})
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// machine is a directory in which a test keeps its state and its resolv.conf.
type machine struct {
	dir string
	sys system
}

func newMachine(t testing.TB) machine {
	t.Helper()
	dir := t.TempDir()
	m := machine{dir: dir, sys: system{
		resolvConf:   filepath.Join(dir, "etc", "resolv.conf"),
		resolvedConf: filepath.Join(dir, "run", "resolv.conf"),
		bus:          "unix:path=" + filepath.Join(dir, "no-bus"),
		hostname:     func() (string, error) { return "pc", nil },
	}}
	for _, d := range []string{"etc", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, m.sys.resolvConf, "# mine\nnameserver 192.168.7.1\nsearch lan.example\noptions edns0\n")
	return m
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m machine) options() platform.Options {
	return platform.Options{StateDir: filepath.Join(m.dir, "state")}
}

func (m machine) open(t testing.TB) *Host {
	t.Helper()
	h, err := newHost(slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})), m.options(), m.sys)
	if err != nil {
		t.Fatalf("new: %v", err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

var volatile = regexp.MustCompile(`"(handle|packets|bytes|valid_life_time|preferred_life_time|index)": ?\d+`)

// kernelRoutes are those of table local, which the kernel derives from the
// addresses (compared by themselves) and, for IPv6, a moment later.
var kernelRoutes = regexp.MustCompile(`\{"type":"[a-z]+","dst":"[^"]*","dev":"[^"]*","table":"local"[^}]*\},?`)

// snapshot is the state S0 of RELIABILITY.md: what must be equal before and
// after.
func (m machine) snapshot() string {
	var b strings.Builder
	for _, c := range []struct{ args, input string }{
		{"ip -4 -j -batch -", "link\naddr\nroute show table all\nrule\n"},
		{"ip -6 -j -batch -", "addr\nroute show table all\nrule\n"},
		{"nft -j list ruleset", ""},
	} {
		args := strings.Fields(c.args)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(c.input)
		out, err := cmd.CombinedOutput()
		fmt.Fprintf(&b, "%s: %s %v\n", c.args, kernelRoutes.ReplaceAll(volatile.ReplaceAll(out, nil), nil), err)
	}
	keys, _ := filepath.Glob("/proc/sys/net/ipv4/conf/*/rp_filter")
	for _, k := range append(keys, "/proc/sys/net/ipv4/conf/all/src_valid_mark") {
		v, _ := os.ReadFile(k)
		fmt.Fprintf(&b, "%s=%s", k, v)
	}
	files, _ := os.ReadDir(filepath.Dir(m.sys.resolvConf))
	for _, f := range files {
		saved, err := snapshotFile(filepath.Join(filepath.Dir(m.sys.resolvConf), f.Name()))
		text, _ := json.Marshal(saved)
		fmt.Fprintf(&b, "%s: %s %v\n", f.Name(), text, err)
	}
	return b.String()
}

func equalState(t *testing.T, when, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			var gl, wl string
			if i < len(g) {
				gl = g[i]
			}
			if i < len(w) {
				wl = w[i]
			}
			t.Errorf("%s the machine differs:\n got %s\nwant %s", when, gl, wl)
		}
	}
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 5 s for: %s", what)
		}
	}
}

// up opens the TUN and applies everything.
func up(t *testing.T, h *Host) {
	t.Helper()
	cfg := everything()
	if _, err := h.OpenTUN(platform.TUNConfig{Name: cfg.TUN, MTU: cfg.MTU, Queues: 2, Addr4: cfg.Addr4, Addr6: cfg.Addr6}); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
}

// routeOf is the device that an app's packet would take.
func routeOf(t *testing.T, args ...string) string {
	t.Helper()
	device, err := lookUp(args...)
	if err != nil {
		t.Fatal(err)
	}
	return device
}

// lookUp is routeOf where there may be no way at all.
func lookUp(args ...string) (device string, err error) {
	out, err := exec.Command("ip", append([]string{"route", "get"}, args...)...).CombinedOutput()
	_, after, ok := strings.Cut(string(out), " dev ")
	if err != nil || !ok {
		return "", fmt.Errorf("ip route get %v: %w\n%s", args, err, out)
	}
	return strings.Fields(after)[0], nil
}
