package linux

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// edits are what people and programs do to resolv.conf ($F), and what is there
// after ours has gone.
var edits = []struct{ name, script, want string }{
	{"appended", "echo nameserver 9.9.9.9 >> $F", original + "nameserver 9.9.9.9\n"},
	{"sed -i of another line", "sed -i s/lan.example/corp.test/ $F", strings.ReplaceAll(original, "lan.example", "corp.test")},
	{"sed -i of our line", "sed -i s/198.18.0.2/9.9.9.9/ $F", "nameserver 9.9.9.9\n" + original},
	{"sed -i of all comments", "sed -i /^#/d $F", "nameserver 192.168.7.1\nsearch lan.example\noptions edns0\n"},
	{"sed -i of all name servers", "sed -i /nameserver/d $F", "nameserver 192.168.7.1\n# mine\nsearch lan.example\noptions edns0\n"},
	{"an editor", "(cat $F; echo options timeout:1) > $F~ && mv $F~ $F", original + "options timeout:1\n"},
	{"an editor with a backup", "mv $F $F~ && (cat $F~; echo options timeout:1) > $F && rm $F~", original + "options timeout:1\n"},
	{"emptied", ": > $F", original},
	{"deleted", "rm $F", original},
	{"replaced", "echo nameserver 9.9.9.9 > $F.new && mv $F.new $F", "nameserver 9.9.9.9\n"},
	{"a link in its place", "echo nameserver 9.9.9.9 > $F.real && ln -sf resolv.conf.real $F", "nameserver 9.9.9.9\n"},
	{"tripled", "cat $F $F $F > $F.new && cat $F.new > $F; rm $F.new", original + original + original},
}

func edit(t *testing.T, m machine, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Env = append(os.Environ(), "F="+m.sys.resolvConf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// crashed runs the engine's changes in a process of its own and kills it when
// all are made.
func crashed(t *testing.T, m machine) {
	t.Helper()
	_ = m.killedAt(allMade).Run()
	if !strings.Contains(read(t, m.sys.resolvConf), "198.18.0.2") {
		t.Fatal("killed before resolv.conf was written")
	}
}

var ourServer = netip.MustParseAddr("198.18.0.2")

// TR-03: whatever is done to resolv.conf while on, names are ours again, and
// after down theirs is there and ours is not.
func TestResolvConfEditedWhileOn(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	for _, e := range edits {
		for _, seen := range []string{"seen", "in the last moment"} {
			t.Run(e.name+" "+seen, func(t *testing.T) {
				edit(t, m, "rm -f $F $F.real")
				writeFile(t, m.sys.resolvConf, original)
				h := m.open(t)
				up(t, h)
				if seen == "seen" {
					edit(t, m, e.script)
					waitFor(t, "our server alone, again", func() bool {
						b, _ := os.ReadFile(m.sys.resolvConf)
						return slices.Equal(nameservers(b), []netip.Addr{ourServer})
					})
				} else {
					h.mu.Lock() // the monitor cannot answer
					edit(t, m, e.script)
					h.mu.Unlock()
				}
				if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
					t.Fatal(err)
				}
				if got := read(t, m.sys.resolvConf); got != e.want {
					t.Errorf("after down\n%s\nwant\n%s", got, e.want)
				}
				h.Close()
			})
		}
	}
}

// The same between a kill and what undoes it: the next start, or rescue when
// even the state directory is gone.
func TestResolvConfEditedAfterKill(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for _, e := range edits {
		t.Run(e.name, func(t *testing.T) {
			edit(t, m, "rm -f $F $F.real")
			writeFile(t, m.sys.resolvConf, original)
			crashed(t, m)
			edit(t, m, e.script)
			m.open(t).Close()
			if got := read(t, m.sys.resolvConf); got != e.want {
				t.Errorf("after the next start\n%s\nwant\n%s", got, e.want)
			}
		})
		t.Run(e.name+" without the state", func(t *testing.T) {
			edit(t, m, "rm -f $F $F.real")
			writeFile(t, m.sys.resolvConf, original)
			crashed(t, m)
			edit(t, m, e.script)
			if err := os.RemoveAll(m.options().StateDir); err != nil {
				t.Fatal(err)
			}
			err := rescue(log, m.options(), m.sys)
			b, _ := os.ReadFile(m.sys.resolvConf)
			switch e.name {
			case "emptied", "deleted", "sed -i of all comments", "sed -i of all name servers":
				// Nothing is left that could tell; but nothing is said that is not so.
				if err == nil && strings.Contains(string(b), markAdded) {
					t.Errorf("rescue: no error, and left\n%s", b)
				}
			default:
				if err != nil || string(b) != e.want {
					t.Errorf("rescue: %v, left\n%s\nwant\n%s", err, b, e.want)
				}
			}
		})
	}
}

// Without marks and without a journal our IPv6 resolver still gives us away: it
// is nobody else's address. Another program's 198.18.0.2 is left to it.
func TestResolvConfWithoutMarks(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	const ours = "nameserver 198.18.0.2\nnameserver fd61:746c:616e:7469::2\n"
	for content, want := range map[string]struct {
		text string
		told bool
	}{
		ours + "nameserver 9.9.9.9\n":     {"nameserver 9.9.9.9\n", false},
		ours + "search lan.example\n":     {"search lan.example\n", true},
		"nameserver 198.18.0.2\n":         {"nameserver 198.18.0.2\n", false},
		headBefore + ".\n" + ours:         {"", true},
		"# nothing\nnameserver 9.9.9.9\n": {"# nothing\nnameserver 9.9.9.9\n", false},
	} {
		writeFile(t, m.sys.resolvConf, content)
		err := rescue(log, m.options(), m.sys)
		if got := read(t, m.sys.resolvConf); got != want.text || (err != nil) != want.told {
			t.Errorf("%q became %q, %v", content, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "names no resolver") {
			t.Error(err)
		}
	}
}

// The file stays the same one, with all that hangs on it.
func TestResolvConfStaysTheSameFile(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	path, link := m.sys.resolvConf, filepath.Join(m.dir, "hard")
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.owner", []byte("me"), 0); err != nil {
		t.Skipf("SKIPPED: no extended attributes here: %v", err)
	}
	acl := "no setfacl here"
	if _, err := exec.LookPath("setfacl"); err == nil {
		run(t, "setfacl", "-m", "u:65534:rw", path)
		acl = run(t, "getfacl", "-np", path)
	}
	same := func(when string) {
		t.Helper()
		value := make([]byte, 8)
		n, err := unix.Getxattr(path, "user.owner", value)
		if err != nil || string(value[:n]) != "me" {
			t.Errorf("%s: extended attribute %q, %v", when, value[:max(n, 0)], err)
		}
		if acl != "no setfacl here" && run(t, "getfacl", "-np", path) != acl {
			t.Errorf("%s: the ACL is\n%s\nwant\n%s", when, run(t, "getfacl", "-np", path), acl)
		}
		if read(t, path) != read(t, link) {
			t.Errorf("%s: the hard link is another file now", when)
		}
	}
	h := m.open(t)
	up(t, h)
	same("while on")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	same("after down")
	if got := read(t, path); got != original {
		t.Errorf("after down:\n%s", got)
	}
	// Where the file cannot be opened for writing another takes its place.
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(path, []byte(original), &st); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(link)
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	same("after a replacement")
}

// A link that was edited by way of the file in its place is a link again, and
// the edit is where it leads; if that has changed meanwhile, both stay.
func TestResolvConfLinkEdited(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	path, real := m.sys.resolvConf, m.sys.resolvConf+".real"
	for name, tt := range map[string]struct{ script, link, real, text string }{
		"untouched":   {":", "resolv.conf.real", original, original},
		"appended":    {"echo nameserver 9.9.9.9 >> $F", "resolv.conf.real", original + "nameserver 9.9.9.9\n", original + "nameserver 9.9.9.9\n"},
		"its manager": {"echo nameserver 192.168.7.9 > $F.real", "resolv.conf.real", "nameserver 192.168.7.9\n", "nameserver 192.168.7.9\n"},
		"both": {"echo nameserver 192.168.7.9 > $F.real; echo nameserver 9.9.9.9 >> $F", "",
			"nameserver 192.168.7.9\n", original + "nameserver 9.9.9.9\n"},
	} {
		for _, end := range []string{"down", "kill", "kill and no state"} {
			t.Run(name+", "+end, func(t *testing.T) {
				edit(t, m, "rm -f $F $F.real; ln -s resolv.conf.real $F")
				writeFile(t, real, original)
				if end == "down" {
					h := m.open(t)
					up(t, h)
					edit(t, m, tt.script)
					if name == "its manager" {
						run(t, "ip", "link", "set", "far0", "down") // any event makes us look
						waitFor(t, "the new server", func() bool {
							return slices.Equal(h.Uplink().DNS, []netip.Addr{netip.MustParseAddr("192.168.7.9")})
						})
						run(t, "ip", "link", "set", "far0", "up")
					}
					if err := h.Close(); err != nil {
						t.Fatal(err)
					}
				} else {
					crashed(t, m)
					edit(t, m, tt.script)
					if end != "kill" {
						_ = os.RemoveAll(m.options().StateDir)
					}
					m.open(t).Close()
				}
				if to, _ := os.Readlink(path); to != tt.link {
					t.Errorf("the link leads to %q, want %q", to, tt.link)
				}
				if read(t, real) != tt.real || read(t, path) != tt.text {
					t.Errorf("there is\n%s\nand behind it\n%s\nwant\n%s\nand\n%s", read(t, path), read(t, real), tt.text, tt.real)
				}
			})
		}
	}
}

// What cannot be undone is told by down, by the service's end and by rescue,
// and rescue forgets nothing.
func TestResolvConfCannotBeChanged(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, tt := range map[string]struct{ lock, unlock string }{
		"immutable": {"chattr +i $F", "chattr -i $F"},
		"read-only": {"mount --bind $F $F; mount -o remount,ro,bind $F", "umount $F"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			h := m.open(t)
			up(t, h)
			if out, err := exec.Command("sh", "-ec", strings.ReplaceAll(tt.lock, "$F", m.sys.resolvConf)).CombinedOutput(); err != nil {
				t.Skipf("SKIPPED: %s: %v: %s", tt.lock, err, out)
			}
			t.Cleanup(func() { _ = exec.Command("sh", "-c", strings.ReplaceAll(tt.unlock, "$F", m.sys.resolvConf)).Run() })
			left := m.sys.resolvConf + " still names our resolver"
			for when, err := range map[string]error{
				"down": h.Apply(context.Background(), platform.NetConfig{}),
				"end":  h.Close(),
			} {
				if err == nil || !strings.Contains(err.Error(), left) {
					t.Errorf("%s: %v", when, err)
				}
			}
			for range 2 {
				if err := rescue(log, m.options(), m.sys); err == nil || !strings.Contains(err.Error(), left) {
					t.Errorf("rescue: %v", err)
				}
			}
			edit(t, m, tt.unlock)
			if err := rescue(log, m.options(), m.sys); err != nil {
				t.Error(err)
			}
			if got := read(t, m.sys.resolvConf); got != original {
				t.Errorf("in the end\n%s", got)
			}
			if _, err := os.Stat(filepath.Join(m.options().StateDir, journalName)); err == nil {
				t.Error("a journal is left")
			}
		})
	}
}
