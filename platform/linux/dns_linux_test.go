package linux

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

const original = "# mine\nnameserver 192.168.7.1\nsearch lan.example\noptions edns0\n"

// takenOf is the file while on.
func takenOf(t *testing.T, path string) string {
	t.Helper()
	was, err := snapshotFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(withOurs(was, []netip.Addr{netip.MustParseAddr("198.18.0.2")}))
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func fileState(t *testing.T, path string) string {
	t.Helper()
	s, err := snapshotFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(s)
	return string(text)
}

// Every kind of resolv.conf comes back byte for byte, with its type, target,
// mode and owner.
func TestResolvConfComesBack(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	tests := map[string]func(t *testing.T, path string){
		"regular file": func(*testing.T, string) {},
		"mode and owner": func(t *testing.T, p string) {
			if os.Chown(p, 65534, 65534) != nil || os.Chmod(p, 0o604) != nil {
				t.Fatal("chown or chmod failed")
			}
		},
		"symlink": func(t *testing.T, p string) {
			if os.Rename(p, p+".real") != nil || os.Symlink("resolv.conf.real", p) != nil {
				t.Fatal("symlink failed")
			}
		},
		"dangling symlink": func(t *testing.T, p string) {
			if os.Remove(p) != nil || os.Symlink("../nowhere", p) != nil {
				t.Fatal("symlink failed")
			}
		},
		"missing":      func(t *testing.T, p string) { _ = os.Remove(p) },
		"no last line": func(t *testing.T, p string) { writeFile(t, p, "search a\r\nnameserver 192.168.7.1") },
		"bind mount": func(t *testing.T, p string) {
			writeFile(t, p+".source", original)
			run(t, "mount", "--bind", p+".source", p)
		},
		"read-only": func(t *testing.T, p string) {
			run(t, "mount", "--bind", p, p)
			run(t, "mount", "-o", "remount,ro,bind", p)
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			path := m.sys.resolvConf
			prepare(t, path)
			during := takenOf(t, path)
			if name == "read-only" {
				during = original
			}
			t.Cleanup(func() { _ = exec.Command("umount", path).Run() })
			before := fileState(t, path)
			h := m.open(t)
			up(t, h)
			if got := read(t, path); got != during {
				t.Errorf("while on resolv.conf is\n%s\nwant\n%s", got, during)
			}
			if name != "dangling symlink" && name != "missing" {
				if got := h.Uplink().DNS; !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.168.7.1")}) {
					t.Errorf("former servers %v", got)
				}
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			if got := fileState(t, path); got != before {
				t.Errorf("after close %s\nwant %s", got, before)
			}
			left, _ := filepath.Glob(path + tmpSuffix)
			if len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// LK-14: what another program writes meanwhile is overwritten by us, and is
// what comes back.
func TestNewestResolvConfComesBack(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	newer := "nameserver 192.168.7.53\nsearch newer.example\n"
	writeFile(t, m.sys.resolvConf, newer)
	waitFor(t, "our resolver again", func() bool {
		return strings.Contains(read(t, m.sys.resolvConf), "nameserver 198.18.0.2")
	})
	if got := read(t, m.sys.resolvConf); !strings.Contains(got, "search newer.example") {
		t.Errorf("the newer search list is lost:\n%s", got)
	}
	waitFor(t, "the newer server in Uplink", func() bool {
		return slices.Equal(h.Uplink().DNS, []netip.Addr{netip.MustParseAddr("192.168.7.53")})
	})
	// Written in the last moment before the end: not even seen, and kept.
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, m.sys.resolvConf); got != newer {
		t.Errorf("after close:\n%s\nwant the newer one", got)
	}

	h = m.open(t)
	up(t, h)
	last := "nameserver 192.168.7.99\n"
	h.mu.Lock() // the monitor cannot answer
	writeFile(t, m.sys.resolvConf, last)
	h.mu.Unlock()
	if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, m.sys.resolvConf); got != last {
		t.Errorf("after Apply of zero:\n%s\nwant what was written last", got)
	}
}

// startBus runs a private dbus-daemon and returns its address.
func startBus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	config := filepath.Join(dir, "bus.conf")
	writeFile(t, config, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>`+address+`</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>
</busconfig>`)
	cmd := exec.Command("dbus-daemon", "--config-file="+config, "--nofork")
	if err := cmd.Start(); err != nil {
		t.Skipf("SKIPPED: no dbus-daemon: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "the bus", func() bool {
		conn, err := dbus.Connect(address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return address
}

// fakeResolved answers as org.freedesktop.resolve1.Manager does.
type fakeResolved struct {
	mu      sync.Mutex
	calls   []string
	servers map[int32][]linkDNS
	domains map[int32][]linkDomain
	route   map[int32]bool
	modes   map[string]string // of the last link
}

func (f *fakeResolved) record(call string) {
	f.calls = append(f.calls, call)
}

func (f *fakeResolved) SetLinkDNS(index int32, servers []linkDNS) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers[index] = servers
	return nil
}

func (f *fakeResolved) SetLinkDomains(index int32, domains []linkDomain) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.domains[index] = domains
	return nil
}

func (f *fakeResolved) SetLinkDefaultRoute(index int32, on bool) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.route[index] = on
	return nil
}

func (f *fakeResolved) SetLinkDNSOverTLS(_ int32, mode string) *dbus.Error {
	return f.mode("dot", mode)
}
func (f *fakeResolved) SetLinkDNSSEC(_ int32, mode string) *dbus.Error { return f.mode("dnssec", mode) }

func (f *fakeResolved) mode(what, mode string) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modes[what] = mode
	return nil
}

func (f *fakeResolved) RevertLink(index int32) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.record("RevertLink")
	delete(f.servers, index)
	delete(f.domains, index)
	delete(f.route, index)
	return nil
}

func (f *fakeResolved) FlushCaches() *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.record("FlushCaches")
	return nil
}

// Get is org.freedesktop.DBus.Properties.Get.
func (f *fakeResolved) Get(_, property string) (dbus.Variant, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := []managerDNS{}
	for index, servers := range f.servers {
		for _, s := range servers {
			all = append(all, managerDNS{index, s.Family, s.Address})
		}
	}
	if property != "DNS" {
		return dbus.Variant{}, dbus.MakeFailedError(os.ErrNotExist)
	}
	return dbus.MakeVariant(all), nil
}

func startFakeResolved(t *testing.T, bus string) *fakeResolved {
	t.Helper()
	f := &fakeResolved{servers: map[int32][]linkDNS{}, domains: map[int32][]linkDomain{}, route: map[int32]bool{}, modes: map[string]string{}}
	conn, err := dbus.Connect(bus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.Export(f, resolvedPath, resolvedManager); err != nil {
		t.Fatal(err)
	}
	if err := conn.Export(f, resolvedPath, "org.freedesktop.DBus.Properties"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("own %s: %v, %v", resolvedName, reply, err)
	}
	return f
}

func TestSystemdResolved(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	bus := startBus(t)
	fake := startFakeResolved(t, bus)
	m := newMachine(t)
	m.sys.bus = bus
	stub := "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"
	writeFile(t, m.sys.resolvConf, stub)
	writeFile(t, m.sys.resolvedConf, "nameserver 192.168.7.1\nnameserver 198.18.0.2\nnameserver fd00:7::1\n")
	before := m.snapshot()
	h := m.open(t)
	up(t, h)
	index, err := deviceIndex("atlantic0")
	if err != nil {
		t.Fatal(err)
	}
	i := int32(index)
	fake.mu.Lock()
	if s := fake.servers[i]; len(s) != 1 || s[0].Family != 2 || !bytes.Equal(s[0].Address, []byte{198, 18, 0, 2}) {
		t.Errorf("servers of the link: %v", fake.servers)
	}
	if d := fake.domains[i]; len(d) != 1 || d[0] != (linkDomain{".", true}) {
		t.Errorf("domains of the link: %v", fake.domains)
	}
	if !fake.route[i] {
		t.Error("the link is not the default route for names")
	}
	if fake.modes["dot"] != "no" || fake.modes["dnssec"] != "no" {
		t.Errorf("DNS over TLS and DNSSEC of the link: %v", fake.modes)
	}
	if !slices.Contains(fake.calls, "FlushCaches") {
		t.Error("the cache was not flushed")
	}
	delete(fake.servers, i) // somebody runs `resolvectl revert`
	fake.mu.Unlock()
	run(t, "ip", "addr", "add", "192.168.99.5/24", "dev", "eth0") // any event makes us look
	waitFor(t, "the servers again", func() bool {
		fake.mu.Lock()
		defer fake.mu.Unlock()
		return len(fake.servers[i]) == 1
	})
	run(t, "ip", "addr", "del", "192.168.99.5/24", "dev", "eth0")
	if got := read(t, m.sys.resolvConf); got != stub {
		t.Errorf("resolv.conf was touched:\n%s", got)
	}
	want := []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("fd00:7::1")}
	waitFor(t, "the real servers", func() bool { return slices.Equal(h.Uplink().DNS, want) })
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if !slices.Contains(fake.calls, "RevertLink") || len(fake.servers) != 0 {
		t.Errorf("after close: calls %v, servers %v", fake.calls, fake.servers)
	}
	equalState(t, "after close", m.snapshot(), before)
}

func TestResolvconf(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	program := filepath.Join(m.dir, "resolvconf")
	writeFile(t, program, "#!/bin/sh\necho \"$@\" >> "+m.dir+"/calls\n[ \"$1\" = -a ] && cat >> "+m.dir+"/calls\nexit 0\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	m.sys.resolvconf = []string{filepath.Join(m.dir, "absent"), program}
	writeFile(t, m.sys.resolvConf, "# Generated by resolvconf\nnameserver 192.168.7.1\nsearch lan.example\n")
	before := read(t, m.sys.resolvConf)
	h := m.open(t)
	up(t, h)
	if got := nameservers([]byte(read(t, m.sys.resolvConf))); !slices.Equal(got, []netip.Addr{ourServer}) {
		t.Errorf("a program that does not write the file leaves it to %v", got)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, m.sys.resolvConf); got != before {
		t.Errorf("after close:\n%s", got)
	}
	want := "-a tun.atlantic0 -m 0 -x\nnameserver 198.18.0.2\nsearch lan.example\n-u\n-d tun.atlantic0\n"
	if got := read(t, filepath.Join(m.dir, "calls")); got != want {
		t.Errorf("calls:\n%s\nwant\n%s", got, want)
	}
}

func TestDetectDNS(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	bus := startBus(t)
	startFakeResolved(t, bus)
	m := newMachine(t)
	program := filepath.Join(m.dir, "resolvconf")
	writeFile(t, program, "")
	h := m.open(t)
	h.system.bus, h.system.resolvconf = bus, []string{program}
	for content, want := range map[string]dnsBackend{
		"":                        dnsFile,
		"nameserver 127.0.0.53\n": dnsResolved,
		"nameserver 127.0.0.1\n":  dnsFile,
		"# Generated by NetworkManager\nnameserver 1.1.1.1\n":              dnsFile, // it is not on the bus
		"# Generated by resolvconf\nnameserver 1.1.1.1\n":                  dnsResolvconf,
		"# ... generated by resolvconf(8)\nnameserver 127.0.0.53\n":        dnsResolved,
		"nameserver 1.1.1.1 # resolvconf\n":                                dnsFile,
		"; generated by /usr/sbin/dhclient-script\nnameserver 192.0.2.1\n": dnsFile,
	} {
		writeFile(t, m.sys.resolvConf, content)
		if got := h.detectDNS(); got != want {
			t.Errorf("%q: %q, want %q", content, got, want)
		}
	}
	h.system.bus = m.sys.bus // no bus at all
	writeFile(t, m.sys.resolvConf, "nameserver 127.0.0.53\n")
	if got := h.detectDNS(); got != dnsFile {
		t.Errorf("without a bus: %q", got)
	}
}

func FuzzResolvConf(f *testing.F) { // FZ-14
	f.Add([]byte(original))
	f.Add([]byte("nameserver\nnameserver ::1%lo\nsearch\r\noptions \x00"))
	f.Add(bytes.Repeat([]byte("nameserver 1.1.1.1\n"), 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n := len(nameservers(data)); n > maxServers {
			t.Fatalf("%d servers", n)
		}
		ours := []netip.Addr{netip.MustParseAddr("198.18.0.2")}
		was := &savedFile{Kind: kindFile, Content: data}
		if _, _, traces := withoutOurs(data, nil); traces {
			return // not a file of before us
		}
		made := withOurs(was, ours)
		if got := nameservers(made); len(got) != 1 || got[0] != ours[0] {
			t.Fatalf("our file %q names %v", made, got)
		}
		if len(data) <= maxResolvConf && len(made) > maxOurs {
			t.Fatalf("%d bytes from %d", len(made), len(data))
		}
		for _, last := range []*savedFile{nil, was} {
			former, traces := formerFile(&savedFile{Kind: kindFile, Content: made}, last, ours)
			if !traces || !bytes.Equal(former.Content, data) {
				t.Fatalf("%q came back as %q", data, former.Content)
			}
		}
	})
}
