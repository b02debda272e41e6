package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// What becomes of an app's request, as the web server sees it.
const (
	proxied = "by the proxy"
	open    = "from the machine's own address"
	nowhere = "not at all"
)

// wayOut asks the web server who it was that asked.
func wayOut(t *testing.T, l *lab.Lab) string {
	t.Helper()
	f, err := l.Fetch(t.Context(), lab.Client, "http://"+lab.Origin4().String()+"/ip", lab.FetchOptions{Args: []string{"--max-time", "5"}})
	switch {
	case err != nil || f.Status != 200:
		return nowhere
	case strings.HasPrefix(string(f.Head), lab.Client4().String()+":"):
		return open
	case strings.HasPrefix(string(f.Head), lab.Upstream4(0).String()+":"):
		return proxied
	}
	t.Fatalf("the web server was asked by %q", f.Head)
	return ""
}

// truthful fails if the status is not what happens to an app's request.
func (s *service) truthful() {
	s.t.Helper()
	st := s.status()
	for end := time.Now().Add(10 * time.Second); st.State == api.Starting && time.Now().Before(end); st = s.status() { // it says nothing yet
		time.Sleep(20 * time.Millisecond)
	}
	way := wayOut(s.t, s.lab)
	text, _, _ := s.cli("status")
	switch {
	case st.State == api.On && (way != proxied || st.Upstream.Name != "one"),
		st.Protect.Blocking != (way == nowhere),
		strings.Contains(text, "held") != (way == nowhere),
		strings.Contains(text, "leaves directly") != (way == open):
		s.t.Errorf("a request leaves %s, and the status is %s by %s, %+v:\n%s", way, st.State, st.Upstream.Name, st.Protect, text)
	}
}

// doubtful is a way to come back after a crash.
type doubtful struct {
	name   string
	damage func(s *service) error
	wrap   []string // of the start that follows
	state  api.State
	way    string
	says   []string // where the status is read
}

func doubts() []doubtful {
	rewrite := func(edit func(toml string) string) func(s *service) error {
		return func(s *service) error {
			b, err := os.ReadFile(s.config())
			if err != nil {
				return err
			}
			return os.WriteFile(s.config(), []byte(edit(string(b))), 0o600)
		}
	}
	typo := rewrite(func(toml string) string { return "[tun]\nstak = \"kernel\"\n" + toml })
	hidden := []string{"unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"}
	all := []doubtful{
		{name: "nothing", damage: func(*service) error { return nil }, state: api.On, way: proxied},
		{name: "configuration deleted", damage: func(s *service) error { return os.Remove(s.config()) },
			state: api.Blocked, way: nowhere, says: []string{`"one"`, "no configuration file", " use NAME"}},
		{name: "configuration emptied", damage: rewrite(func(string) string { return "" }),
			state: api.Blocked, way: nowhere, says: []string{`"one"`, "atlantic.toml does not have it"}},
		{name: "upstream renamed", damage: rewrite(func(toml string) string { return strings.Replace(toml, `"one"`, `"uno"`, 1) }),
			state: api.Blocked, way: nowhere, says: []string{`"one"`, "uno"}},
		{name: "no proxy any more", damage: rewrite(func(string) string { return "[[upstream]]\nname = \"one\"\nurl = \"direct://\"\n" }),
			state: api.Blocked, way: nowhere, says: []string{`"one"`}},
		{name: "configuration with a typo", damage: typo,
			state: api.On, way: proxied, says: []string{"atlantic.toml:2:1: unknown key", "worked last"}},
		{name: "configuration that others may write", damage: func(s *service) error { return os.Chmod(s.config(), 0o666) },
			state: api.On, way: proxied, says: []string{"atlantic.toml", "writ", "worked last"}},
		{name: "configuration that is a directory", damage: func(s *service) error {
			return errors.Join(os.Remove(s.config()), os.Mkdir(s.config(), 0o700))
		}, state: api.On, way: proxied, says: []string{"worked last"}},
		{name: "typo, and nothing that worked", damage: func(s *service) error {
			return errors.Join(typo(s), os.Remove(filepath.Join(s.state(), "atlantic.toml.good")))
		}, state: api.Blocked, way: nowhere, says: []string{"atlantic.toml:2:1: unknown key"}},
		{name: "intent cut", damage: func(s *service) error { return os.Truncate(filepath.Join(s.state(), "intent.json"), 20) },
			state: api.Blocked, way: nowhere, says: []string{"intent.json", " up`"}},
		{name: "no /dev/net/tun", damage: func(*service) error { return nil }, wrap: hidden,
			state: api.Blocked, way: open, says: []string{"/dev/net/tun"}},
	}
	return append(all, journals()...)
}

// journals are the ways in which a journal may be damaged.
func journals() []doubtful {
	edit := func(f func(b []byte) []byte) func(s *service) error {
		return func(s *service) error {
			path := filepath.Join(s.state(), "journal")
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, f(b), 0o600)
		}
	}
	var all []doubtful
	for name, change := range map[string]func(s *service) error{
		"flipped byte": edit(func(b []byte) []byte { b[bytes.IndexByte(b, '\n')+40] ^= 1; return b }),
		"future version": edit(func(b []byte) []byte {
			return append([]byte("4bd4ef3c {\"version\":99,\"boot\":\"\"}\n"), b...)
		}),
		"garbage":       edit(func([]byte) []byte { return []byte("garbage\nmore\n") }),
		"foreign owner": func(s *service) error { return os.Chown(filepath.Join(s.state(), "journal"), nobody, nobody) },
		"symlink": func(s *service) error {
			path := filepath.Join(s.state(), "journal")
			return errors.Join(os.Rename(path, path+".real"), os.Symlink("journal.real", path))
		},
		"17 MiB":  edit(func(b []byte) []byte { return append(b, make([]byte, 17<<20)...) }),
		"missing": func(s *service) error { return os.Remove(filepath.Join(s.state(), "journal")) },
		"cut":     edit(func(b []byte) []byte { return b[:len(b)-7] }),
	} {
		d := doubtful{name: "journal, " + name, damage: change, state: api.On, way: proxied, says: []string{"journal"}}
		if name == "missing" || name == "cut" { // nothing is lost that the names of our objects do not tell
			d.says = nil
		}
		all = append(all, d)
	}
	return all
}

// TestTrust (TR-01): on, proven, killed, and then something is not as it was.
// The service answers, is never on by another way and never says that it holds
// what it does not; what is wrong is said where people look.
func TestTrust(t *testing.T) {
	l := owned(t, "file")
	toml := upstreamToml(t, l)
	before := record(t, l)
	for _, d := range doubts() {
		t.Run(d.name, func(t *testing.T) {
			s := start(t, l, toml)
			s.answers()
			s.must("up")
			s.kill()
			if err := d.damage(s); err != nil {
				t.Fatal(err)
			}
			s.wrap = d.wrap
			s.launch()
			s.await(d.state)
			s.settles(d.way)
			s.truthful()
			text, _, _ := s.cli("status")
			contains(t, text, d.says...)
			if _, stderr, code := s.cli("down"); code != 0 {
				t.Errorf("down: exit code %d\n%s", code, stderr)
			}
			s.truthful()
			s.stop()
			same(t, l, before, "at the end")
		})
	}
	t.Run("port taken", func(t *testing.T) {
		s := start(t, l, toml)
		s.answers()
		s.must("up")
		s.kill()
		ln, err := l.NS(lab.Client).Listen("tcp", "127.0.0.1:7890")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		s.launch()
		s.await(api.Blocked)
		s.truthful()
		text, _, _ := s.cli("status")
		contains(t, text, "Blocked · no protection, traffic leaves directly", "address already in use")
		ln.Close()
		s.await(api.On)
		s.truthful()
		s.stop()
		same(t, l, before, "after a port was taken")
	})
}

// settles waits until requests go that way.
func (s *service) settles(way string) {
	s.t.Helper()
	now := ""
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if now = wayOut(s.t, s.lab); now == way {
			return
		}
	}
	s.t.Fatalf("a request leaves %s, want %s\n%s", now, way, s.out)
}

// TestChoiceAfterDoubt: what the user says while traffic is held decides.
func TestChoiceAfterDoubt(t *testing.T) {
	l := owned(t, "file")
	toml := upstreamToml(t, l)
	before := record(t, l)
	s := start(t, l, toml)
	s.answers()
	s.must("up")
	s.stop()
	if err := os.Remove(s.config()); err != nil {
		t.Fatal(err)
	}
	s.launch()
	s.settles(nowhere)
	s.fails(1, []string{`"one"`, " use NAME"}, "up")
	s.settles(nowhere)
	s.must("use", "direct")
	s.settles(open)
	if st := s.await(api.On); st.Upstream.Name != "direct" {
		t.Errorf("on by %s", st.Upstream.Name)
	}
	s.stop()
	s.launch()
	s.await(api.On)
	s.must("down")
	s.stop()
	same(t, l, before, "at the end")
}

// TestUnkept: a state directory that takes nothing. Every command says that what
// it did will be forgotten; the next start, and a rescue, undo what is in force.
func TestUnkept(t *testing.T) {
	l := owned(t, "file")
	toml := upstreamToml(t, l)
	before := record(t, l)
	for why, script := range map[string]struct{ shut, open string }{
		"read-only file system": {"mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s", "umount -l %[1]s"},
		"no space left":         {"", ""},
	} {
		t.Run(why, func(t *testing.T) {
			s := &service{t: t, lab: l, dir: t.TempDir()}
			if err := errors.Join(os.WriteFile(s.config(), []byte(toml), 0o600), os.Mkdir(s.state(), 0o700)); err != nil {
				t.Fatal(err)
			}
			sh := func(script string) {
				t.Helper()
				if out, code := inClient(t, l, "sh", "-ec", strings.ReplaceAll(script, "%[1]s", s.state())); code != 0 {
					t.Fatalf("%s: %s", script, out)
				}
			}
			shut, open := script.shut, script.open
			if shut == "" {
				sh("mount -t tmpfs -o mode=700,size=256k none %[1]s")
				defer sh("umount -l %[1]s")
				shut, open = "dd if=/dev/zero of=%[1]s/filler bs=1k 2>/dev/null || true", "rm %[1]s/filler"
			}
			s.launch()
			s.answers()
			s.must("up")
			sh(shut)
			const says = "will be forgotten at the next start"
			s.fails(1, []string{says}, "use", "direct")
			contains(t, fmt.Sprint(s.status().Unkept), "intent.json")
			s.fails(1, []string{says}, "down")
			same(t, l, before, "after down, "+why)
			s.fails(3, []string{"journal", why}, "up", "--upstream", "one") // nothing is changed that cannot be undone
			s.kill()
			s.launch()
			s.answers()
			s.truthful()
			sh(open)
			s.must("up", "--upstream", "one")
			sh(shut)
			s.kill()
			s.rescue()
			same(t, l, before, "after a rescue, "+why)
			sh(open)
			s.launch()
			if st := s.await(api.On); st.Unkept != "" {
				t.Errorf("unkept: %s", st.Unkept)
			}
			s.must("down")
			s.stop()
			same(t, l, before, "at the end")
		})
	}
}

// TestTakenOver: another program takes the internet over while we are on.
func TestTakenOver(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	s := start(t, l, upstreamToml(t, l), "--up")
	s.await(api.On)
	sh := func(script string) {
		t.Helper()
		if out, code := inClient(t, l, "sh", "-ec", script); code != 0 {
			t.Fatalf("%s: %s", script, out)
		}
	}
	if text, _, _ := s.cli("status"); strings.Contains(text, "taken in") {
		t.Errorf("before:\n%s", text)
	}
	sh("ip rule add pref 4321 lookup main")
	s.settles(open)
	text, _, _ := s.cli("status")
	contains(t, text, "not all traffic is taken in: packets to 2.2.2.2 leave by ")
	sh("ip rule del pref 4321")
	s.settles(proxied)
	s.stop()
	same(t, l, before, "at the end")
}
