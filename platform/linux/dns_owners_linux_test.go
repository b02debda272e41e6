package linux

import (
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The real systemd-resolved: our link has the server, every name and nothing
// else, and its own links are as they were afterwards, also after a crash.
func TestRealResolved(t *testing.T) {
	if !inDebian(t, "desktop") {
		return
	}
	startSystemBus(t)
	if err := os.Mkdir("/run/systemd", 0o755); err != nil { // as process 1 does
		t.Fatal(err)
	}
	daemon(t, "/lib/systemd/systemd-resolved")
	waitFor(t, "systemd-resolved", func() bool { return resolvedAnswers("") })
	run(t, "resolvectl", "dns", "eth0", "192.168.7.1")
	run(t, "resolvectl", "domain", "eth0", "lan.example")
	eth0 := func() string { return run(t, "resolvectl", "status", "eth0") }
	before, stub := eth0(), fileState(t, "/etc/resolv.conf")

	m := debianMachine(t)
	h := m.open(t)
	up(t, h)
	if got := h.dnsInForce(); got != dnsResolved {
		t.Fatalf("dns was taken from %q", got)
	}
	ours := run(t, "resolvectl", "status", "atlantic0")
	for _, want := range []string{"Current Scopes: DNS", "+DefaultRoute", "-DNSOverTLS", "DNSSEC=no", "DNS Servers: 198.18.0.2\n", "DNS Domain: ~.\n"} {
		if !strings.Contains(ours, want) {
			t.Errorf("no %q in\n%s", want, ours)
		}
	}
	waitFor(t, "the former server", func() bool { return slices.Contains(h.Uplink().DNS, netip.MustParseAddr("192.168.7.1")) })
	run(t, "resolvectl", "revert", "atlantic0") // somebody takes it away: it is set again
	run(t, "ip", "addr", "add", "192.168.99.5/24", "dev", "eth0")
	waitFor(t, "our server again", func() bool {
		return strings.Contains(run(t, "resolvectl", "status", "atlantic0"), "198.18.0.2")
	})
	run(t, "ip", "addr", "del", "192.168.99.5/24", "dev", "eth0")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if got := eth0(); got != before {
		t.Errorf("after close eth0 is\n%s\nwant\n%s", got, before)
	}
	if got := fileState(t, "/etc/resolv.conf"); got != stub {
		t.Errorf("after close resolv.conf is %s\nwant %s", got, stub)
	}
	if all := run(t, "resolvectl", "dns"); strings.Contains(all, "198.18.0.2") {
		t.Errorf("after close our server is left:\n%s", all)
	}
}

// The real programs of the name resolvconf, Debian's and openresolv: the file
// they write names our server first, and what they knew is there again
// afterwards.
func TestRealResolvconf(t *testing.T) {
	t.Run("debian", func(t *testing.T) {
		if inDebian(t, "resolvconf") {
			ownedByResolvconf(t, func() {
				if err := os.MkdirAll("/run/resolvconf/interface", 0o755); err != nil {
					t.Fatal(err)
				}
				run(t, "resolvconf", "--enable-updates")
			})
		}
	})
	t.Run("openresolv", func(t *testing.T) {
		if inDebian(t, "openresolv") {
			ownedByResolvconf(t, func() {})
		}
	})
}

func ownedByResolvconf(t *testing.T, boot func()) {
	t.Helper()
	boot()
	add := exec.Command("resolvconf", "-a", "eth0.dhclient")
	add.Stdin = strings.NewReader("nameserver 192.168.7.1\nsearch lan.example\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, state := read(t, "/etc/resolv.conf"), fileState(t, "/etc/resolv.conf")
	if !strings.Contains(before, "nameserver 192.168.7.1\n") || !strings.Contains(before, "search lan.example\n") {
		t.Fatalf("before us:\n%s", before)
	}
	m := debianMachine(t)
	h := m.open(t)
	up(t, h)
	if got := h.dnsInForce(); got != dnsResolvconf {
		t.Fatalf("dns was taken from %q", got)
	}
	// Debian's keeps the others' servers behind ours.
	during := read(t, "/etc/resolv.conf")
	if got := nameservers([]byte(during)); len(got) == 0 || got[0] != netip.MustParseAddr("198.18.0.2") {
		t.Errorf("while on:\n%s", during)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fileState(t, "/etc/resolv.conf"); got != state {
		t.Errorf("after close:\n%s\nwant\n%s", read(t, "/etc/resolv.conf"), before)
	}
}
