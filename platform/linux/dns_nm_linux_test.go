package linux

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// startNetworkManager runs the real one, and returns whether resolv.conf is what
// it writes without us.
func startNetworkManager(t *testing.T) (generated func() bool) {
	t.Helper()
	// Without systemd-resolved, with a connection that has a name server of its own.
	writeFile(t, "/etc/NetworkManager/conf.d/test.conf", "[main]\ndns=default\nrc-manager=file\nno-auto-default=*\n")
	connection := "/etc/NetworkManager/system-connections/eth0.nmconnection"
	writeFile(t, connection, `[connection]
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
	if err := os.Chmod(connection, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove("/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	startSystemBus(t)
	run(t, "mount", "-o", "remount,ro", "/sys") // "a container": do not wait for udev
	run(t, "ip", "addr", "flush", "dev", "eth0")
	daemon(t, "NetworkManager", "--no-daemon")

	generated = func() bool {
		b, _ := os.ReadFile("/etc/resolv.conf")
		return strings.Contains(string(b), "NetworkManager") && slices.Equal(nameservers(b), []netip.Addr{netip.MustParseAddr("192.168.7.1")})
	}
	waitFor(t, "NetworkManager's resolv.conf", generated)
	return generated
}

// The real NetworkManager: it writes our server itself, nothing else does, and
// its own comes back.
func TestNetworkManager(t *testing.T) {
	if !inDebian(t, "desktop") {
		return
	}
	generated := startNetworkManager(t)
	before := read(t, "/etc/resolv.conf")
	m := debianMachine(t)
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
	err := onBus(m.sys.bus, func(_ context.Context, conn *dbus.Conn) error {
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
