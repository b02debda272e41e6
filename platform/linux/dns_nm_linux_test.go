package linux

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// startNetworkManager runs the real one on a private bus. Its /etc, /run and
// /var/lib are private to the namespace; resolv.conf is the machine's there.
func startNetworkManager(t *testing.T, bus string) {
	t.Helper()
	program, err := exec.LookPath("NetworkManager")
	if err != nil {
		t.Skip("SKIPPED: NetworkManager is not installed")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "nm.conf")
	writeFile(t, config, "[main]\nplugins=keyfile\nrc-manager=file\nno-auto-default=*\n[keyfile]\npath="+dir+"/connections\n[logging]\nlevel=INFO\n")
	if err := os.Mkdir(filepath.Join(dir, "connections"), 0o700); err != nil {
		t.Fatal(err)
	}
	// A connection with a name server of its own, on the end of the veth.
	path := filepath.Join(dir, "connections", "eth0.nmconnection")
	writeFile(t, path, `[connection]
id=eth0
uuid=6a0a5e4e-6a5c-4f0e-9d1b-0d5a3f1c7a11
type=ethernet
interface-name=eth0
[ipv4]
method=manual
address1=192.168.7.2/24,192.168.7.1
dns=192.168.7.1;
dns-search=lan.example;
[ipv6]
method=ignore
`)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "remount,ro", "/sys") // "a container": do not wait for udev
	run(t, "ip", "addr", "flush", "dev", "eth0")
	cmd := exec.Command(program, "--no-daemon", "--config="+config, "--config-dir="+dir+"/conf.d",
		"--system-config-dir="+dir+"/none", "--intern-config="+dir+"/intern.conf", "--state-file="+dir+"/state", "--pid-file="+dir+"/pid")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+bus)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("NetworkManager: %s", b)
		}
	})
}

// The real NetworkManager: it writes our server itself, nothing else does, and
// its own comes back.
func TestNetworkManager(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	bus := startBus(t)
	for _, d := range []string{"/run", "/var/lib"} {
		run(t, "mount", "-t", "tmpfs", "none", d)
	}
	for _, d := range []string{"/run/NetworkManager", "/var/lib/NetworkManager"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	etc := t.TempDir() // a writable copy of /etc, of this namespace only
	run(t, "cp", "-a", "/etc/.", etc)
	run(t, "mount", "--bind", etc, "/etc")
	startNetworkManager(t, bus)

	m := newMachine(t)
	m.sys.bus, m.sys.resolvConf = bus, "/etc/resolv.conf"
	generated := func() bool {
		b, _ := os.ReadFile("/etc/resolv.conf")
		return strings.Contains(string(b), "NetworkManager") && slices.Equal(nameservers(b), []netip.Addr{netip.MustParseAddr("192.168.7.1")})
	}
	waitFor(t, "NetworkManager's resolv.conf", generated)
	before := read(t, "/etc/resolv.conf")
	h := m.open(t)
	up(t, h)
	if got := h.dnsInForce(); got != dnsNetworkManager {
		t.Fatalf("dns was taken from %q", got)
	}
	ours := []netip.Addr{netip.MustParseAddr("198.18.0.2")}
	waitFor(t, "our server in resolv.conf", func() bool {
		b, _ := os.ReadFile("/etc/resolv.conf")
		return slices.Equal(nameservers(b), ours) && strings.Contains(string(b), "lan.example")
	})
	// Somebody empties it: it is set again.
	err := onBus(bus, func(_ context.Context, conn *dbus.Conn) error {
		return conn.Object(nmName, nmPath).SetProperty(nmGlobal, dbus.MakeVariant(nmConfig{}))
	})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "our server again", func() bool {
		b, _ := os.ReadFile("/etc/resolv.conf")
		return slices.Equal(nameservers(b), ours)
	})
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "NetworkManager's own server", generated)
	if got := read(t, "/etc/resolv.conf"); got != before {
		t.Errorf("after close:\n%s\nwant\n%s", got, before)
	}
}
