package linux

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// The network's own domains are those of resolv.conf as it was, live, and where
// it has none the host's, as glibc has it.
func TestSearchDomains(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	m.sys.hostname = func() (string, error) { return "pc.office.example", nil }
	h := m.open(t)
	is := func(when, want string) {
		t.Helper()
		waitFor(t, when+": "+want, func() bool { return strings.Join(h.Uplink().Search, " ") == want })
	}
	for content, want := range map[string]string{
		"nameserver 192.168.7.1\n": "office.example",
		"search .\n":               "",
		"domain Corp.Test.\n":      "corp.test",
		"search b.test a.test b.test\ndomain c.test\noptions ndots:5\n": "a.test b.test c.test",
	} {
		writeFile(t, m.sys.resolvConf, content)
		is("off", want)
	}
	writeFile(t, m.sys.resolvConf, original)
	up(t, h)
	is("on", "lan.example")
	edit(t, m, "sed -i 's/^search.*/search lan.example fritz.box/' $F")
	is("on, and edited", "fritz.box lan.example")
	if got := read(t, m.sys.resolvConf); !strings.Contains(got, "\nsearch lan.example fritz.box\noptions edns0\n") {
		t.Errorf("search list and options of the machine are not in force:\n%s", got)
	}
}

// The real systemd-resolved: domains of its links count, also those that names
// are only routed by, and not our own.
func TestRealResolvedDomains(t *testing.T) {
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
	run(t, "resolvectl", "domain", "eth0", "lan.example", "~corp.test")
	m := debianMachine(t)
	h := m.open(t)
	is := func(want ...string) {
		t.Helper()
		waitFor(t, strings.Join(want, ", "), func() bool { return slices.Equal(h.Uplink().Search, want) })
	}
	is("corp.test", "lan.example")
	up(t, h)
	is("corp.test", "lan.example")
	run(t, "resolvectl", "domain", "eth0", "fritz.box")
	is("fritz.box")
}
