package linux

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// upNamed is up with both resolvers, as the engine has them.
func upNamed(t *testing.T, h *Host) platform.NetConfig {
	t.Helper()
	up(t, h)
	cfg := everything()
	cfg.DNS = append(cfg.DNS, netip.MustParseAddr("fd61:746c:616e:7469::2"))
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TR-03 where another program writes resolv.conf: emptied or edited, it names us
// again; afterwards it does not, whatever has become of that program; and after
// a kill rescue needs no journal.
func managedEdits(t *testing.T, m machine, backend dnsBackend, restart func(), generated func() bool) {
	t.Helper()
	ours := func() bool {
		b, _ := os.ReadFile("/etc/resolv.conf")
		s := nameservers(b)
		return len(s) > 0 && s[0] == ourServer
	}
	for _, script := range []string{
		"echo nameserver 9.9.9.9 >> $F", ": > $F", "rm $F; echo nameserver 9.9.9.9 > $F", "rm $F",
		"sed -i s/198.18.0.2/9.9.9.9/ $F",
	} {
		before := fileState(t, "/etc/resolv.conf")
		h := m.open(t)
		upNamed(t, h)
		if got := h.dnsInForce(); got != backend {
			t.Fatalf("before %s dns was taken from %q: %s", script, got, before)
		}
		waitFor(t, "our server", ours)
		edit(t, m, script)
		waitFor(t, "our server after "+script, ours)
		if err := h.Close(); err != nil {
			t.Errorf("%s: close: %v", script, err)
		}
		waitFor(t, "what was there, or theirs, after "+script, func() bool {
			b, _ := os.ReadFile("/etc/resolv.conf")
			theirs := nameservers(b)
			return generated() || slices.Contains(theirs, netip.MustParseAddr("9.9.9.9")) && len(ownServers(b)) == 0 && !slices.Contains(theirs, ourServer)
		})
		restart()
		waitFor(t, "what was there", generated)
	}
	h := m.open(t)
	upNamed(t, h)
	waitFor(t, "our server", ours)
	abandon(t, h)
	if err := os.RemoveAll(m.options().StateDir); err != nil {
		t.Fatal(err)
	}
	if err := rescue(slog.New(slog.NewTextHandler(io.Discard, nil)), m.options(), m.sys); err != nil {
		t.Errorf("rescue without a journal: %v", err)
	}
	waitFor(t, "what was there, after a kill", generated)
}

// abandon ends h as a kill would: nothing is undone.
func abandon(t *testing.T, h *Host) {
	t.Helper()
	h.mu.Lock()
	h.journal.close()
	h.journal, h.cfg = nil, platform.NetConfig{}
	h.mu.Unlock()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRealResolvconfEdited(t *testing.T) {
	for _, name := range []string{"resolvconf", "openresolv"} {
		t.Run(name, func(t *testing.T) {
			if !inDebian(t, name) {
				return
			}
			if name == "resolvconf" {
				if err := os.MkdirAll("/run/resolvconf/interface", 0o755); err != nil {
					t.Fatal(err)
				}
				run(t, "resolvconf", "--enable-updates")
			}
			add := exec.Command("resolvconf", "-a", "eth0.dhclient")
			add.Stdin = strings.NewReader("nameserver 192.168.7.1\nsearch lan.example\noptions ndots:2\n")
			if out, err := add.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			m := debianMachine(t)
			managedEdits(t, m, dnsResolvconf, func() {
				if name == "resolvconf" {
					run(t, "ln", "-sf", "../run/resolvconf/resolv.conf", "/etc/resolv.conf")
				}
				run(t, "resolvconf", "-u")
			}, func() bool {
				b, _ := os.ReadFile("/etc/resolv.conf")
				return slices.Equal(nameservers(b), []netip.Addr{netip.MustParseAddr("192.168.7.1")}) && strings.Contains(string(b), "search lan.example")
			})
		})
	}
}

func TestNetworkManagerEdited(t *testing.T) {
	if !inDebian(t, "desktop") {
		return
	}
	generated := startNetworkManager(t)
	managedEdits(t, debianMachine(t), dnsNetworkManager, func() {
		if err := reloadNetworkManager(""); err != nil {
			t.Error(err)
		}
	}, generated)
}

// A machine that NetworkManager takes into another network has its servers and
// domains, although the file names us.
func TestNetworkManagerRoams(t *testing.T) {
	if !inDebian(t, "desktop") {
		return
	}
	startNetworkManager(t)
	m := debianMachine(t)
	h := m.open(t)
	upNamed(t, h)
	is := func(server, domain string) {
		t.Helper()
		waitFor(t, server+" and "+domain, func() bool {
			c := h.Uplink()
			return slices.Equal(c.DNS, []netip.Addr{netip.MustParseAddr(server)}) && slices.Equal(c.Search, []string{domain})
		})
	}
	is("192.168.7.1", "lan.example")
	run(t, "nmcli", "connection", "modify", "eth0", "ipv4.dns", "192.168.8.1", "ipv4.dns-search", "roam.example",
		"ipv4.addresses", "192.168.8.2/24", "ipv4.gateway", "192.168.8.1")
	run(t, "nmcli", "connection", "up", "eth0")
	is("192.168.8.1", "roam.example")
}
