package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
	"github.com/atlanticproxy/atlanticproxy/lab/snapshot"
)

// resolvConfs are the forms of /etc/resolv.conf that are put back here; the
// services that write it have tests of their own in platform/linux.
func resolvConfs() []string { return []string{"file", "symlink"} }

// owned is a lab whose client has an owner with settings of their own: none of
// them is ours to touch.
func owned(t *testing.T, form string) *lab.Lab {
	t.Helper()
	l := lab.NewTest(t, lab.Options{})
	for _, script := range []string{
		"ip rule add pref 100 from 10.99.0.0/16 lookup 77",
		"ip -6 rule add pref 100 from fd99::/64 lookup 77",
		"ip rule add pref 5400 fwmark 0x51820 lookup 77",
		"ip route add 192.0.2.128/25 via 10.77.0.1 table 77",
		"ip route add 203.0.114.0/24 via 10.77.0.1 metric 50",
		"ip -6 route add 2001:db8:99::/64 via fd77::1",
		"nft add table inet owner",
		"nft 'add chain inet owner out { type filter hook output priority 0 ; policy accept ; }'",
		"nft add rule inet owner out ip daddr 192.0.2.200 counter drop",
	} {
		if out, err := l.Command(lab.Client, "sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	text := "# the owner's\nsearch lan.test\nnameserver " + lab.DNS4().String() + "\noptions timeout:1\n"
	if err := l.SetResolvConf(lab.Client, text); err != nil {
		t.Fatal(err)
	}
	if form == "symlink" {
		path := l.Path(lab.Client, "/etc/resolv.conf")
		to := l.Path(lab.Client, "/run/owner.conf")
		if err := os.Rename(path, to); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../run/owner.conf", path); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// record is a snapshot together with what a symbolic link to it leads to.
func record(t *testing.T, l *lab.Lab) snapshot.Snapshot {
	t.Helper()
	s, err := l.Snapshot(lab.Client)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(l.Path(lab.Client, "/run/owner.conf"))
	s["file /run/owner.conf"] = []string{strconv.Quote(string(b))}
	return s
}

// same fails unless the client is as it was.
func same(t *testing.T, l *lab.Lab, before snapshot.Snapshot, when string) {
	t.Helper()
	if d := snapshot.Diff(before, record(t, l)); d != "" {
		t.Errorf("%s the machine is not as it was:\n%s", when, d)
	}
}

// onlyAdded fails if anything that was there before has gone or changed, but
// for the DNS setting; and if nothing is there, for then nothing is tested.
func onlyAdded(t *testing.T, l *lab.Lab, before snapshot.Snapshot) {
	t.Helper()
	now := record(t, l)
	for section, lines := range before {
		if section == "file /etc/resolv.conf" {
			continue
		}
		for _, line := range lines {
			if !slices.Contains(now[section], line) {
				t.Errorf("while on, this is gone from %s: %s", section, line)
			}
		}
	}
	for _, section := range []string{"addr", "link", "route", "route6", "rule", "rule6", "nft", "file /etc/resolv.conf"} {
		if slices.Equal(before[section], now[section]) {
			t.Errorf("while on, nothing has changed in %s: what would be restored?", section)
		}
	}
}

// works fetches a page in the client.
func works(t *testing.T, l *lab.Lab) {
	t.Helper()
	f, err := l.Fetch(t.Context(), lab.Client, "http://example.test/proto", lab.FetchOptions{Args: []string{"--max-time", "10"}})
	if err != nil {
		t.Error(err)
	} else if f.Status != 200 {
		t.Errorf("status %d", f.Status)
	}
}

// upstreamToml starts a CONNECT proxy and configures it.
func upstreamToml(t *testing.T, l *lab.Lab) string {
	t.Helper()
	p, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	return labDNS + fmt.Sprintf("[[upstream]]\nname = \"one\"\nurl = %q\n", p.URL())
}

// ended waits for the service's orderly end.
func (s *service) ended() {
	s.t.Helper()
	select {
	case err := <-s.exited:
		s.exited <- err
		if err != nil {
			s.t.Errorf("the service ended with %v:\n%s", err, s.out)
		}
	case <-time.After(10 * time.Second):
		s.t.Errorf("the service does not end:\n%s", s.out)
	}
}

// TestRestore ends in each orderly way, and compares.
func TestRestore(t *testing.T) {
	for _, form := range resolvConfs() {
		t.Run(form, func(t *testing.T) {
			l := owned(t, form)
			toml := upstreamToml(t, l)
			before := record(t, l)
			for _, end := range []struct {
				name string
				do   func(s *service)
			}{
				{"down", func(s *service) {
					s.must("down")
					same(t, l, before, "after down")
					s.cmd.Process.Signal(syscall.SIGTERM)
				}},
				{"SIGTERM", func(s *service) { s.cmd.Process.Signal(syscall.SIGTERM) }},
				{"Ctrl-C", func(s *service) { s.cmd.Process.Signal(syscall.SIGINT) }},
				{"closed terminal", func(s *service) { s.cmd.Process.Signal(syscall.SIGHUP) }},
				{"five times up and down", func(s *service) {
					for range 5 {
						s.must("down")
						s.must("up")
					}
					onlyAdded(t, l, before)
					s.must("down")
					same(t, l, before, "after five times up and down")
					s.must("up")
					s.cmd.Process.Signal(syscall.SIGTERM)
				}},
				{"userspace", func(s *service) { s.cmd.Process.Signal(syscall.SIGTERM) }},
			} {
				t.Run(end.name, func(t *testing.T) {
					config := toml
					if end.name == "userspace" {
						config += "[tun]\nstack = \"userspace\"\n"
					}
					s := start(t, l, config, "--up")
					s.await(api.On)
					works(t, l)
					onlyAdded(t, l, before)
					end.do(s)
					s.ended()
					same(t, l, before, "after "+end.name)
				})
			}
		})
	}
}

// TestResolvConfEdited: what the owner does to resolv.conf while on is there
// after down, ours is not, and names work before and after. What cannot be
// undone is said, by down and by rescue.
func TestResolvConfEdited(t *testing.T) {
	l := owned(t, "file")
	text := "# the owner's\nsearch lan.test\nnameserver " + lab.DNS4().String() + "\noptions timeout:1\n"
	s := start(t, l, upstreamToml(t, l))
	s.answers()
	for script, want := range map[string]string{
		"echo nameserver 9.9.9.9 >> /etc/resolv.conf":              text + "nameserver 9.9.9.9\n",
		"sed -i s/lan.test/corp.test/ /etc/resolv.conf":            strings.Replace(text, "lan.test", "corp.test", 1),
		": > /etc/resolv.conf":                                     text,
		"cp /etc/resolv.conf /etc/x && mv /etc/x /etc/resolv.conf": text,
	} {
		if err := l.SetResolvConf(lab.Client, text); err != nil {
			t.Fatal(err)
		}
		s.must("up")
		if out, code := inClient(t, l, "sh", "-ec", script); code != 0 {
			t.Fatal(out)
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if b, _ := os.ReadFile(l.Path(lab.Client, "/etc/resolv.conf")); strings.Contains(string(b), "\nnameserver 198.18.0.2\n") {
				break
			}
		}
		works(t, l)
		s.must("down")
		if b, _ := os.ReadFile(l.Path(lab.Client, "/etc/resolv.conf")); string(b) != want {
			t.Errorf("after %s and down:\n%s\nwant\n%s", script, b, want)
		}
		if addrs, err := l.Resolve(t.Context(), lab.Client, "example.test"); err != nil || len(addrs) == 0 {
			t.Errorf("after %s and down: %v, %v", script, addrs, err)
		}
	}
	s.must("up")
	path := l.Path(lab.Client, "/etc/resolv.conf")
	if out, err := exec.Command("chattr", "+i", path).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: chattr: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("chattr", "-i", path).Run() })
	const left = "/etc/resolv.conf still names our resolver"
	s.fails(1, []string{left}, "down")
	s.kill()
	if out, err := s.command("rescue", "--state", s.state()).CombinedOutput(); err == nil || !strings.Contains(string(out), left) {
		t.Errorf("rescue with an immutable file: %v: %s", err, out)
	}
}

// TestCycles: coming up and going down many times costs nothing that stays.
func TestCycles(t *testing.T) {
	l := owned(t, "file")
	s := start(t, l, upstreamToml(t, l))
	s.answers()
	before := record(t, l)
	cycle := func() {
		s.must("up")
		works(t, l)
		s.must("down")
	}
	files := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for range 3 {
		cycle()
	}
	open, held := files(), memory(t, s.cmd.Process.Pid, "RssAnon:")
	for range 20 {
		cycle()
	}
	same(t, l, before, "after many cycles")
	if n := files(); n > open+2 {
		t.Errorf("after 20 cycles more, %d files are open, not %d", n, open)
	}
	if n := memory(t, s.cmd.Process.Pid, "RssAnon:"); n > held+10<<20 {
		t.Errorf("after 20 cycles more, it holds %d MB, not %d", n>>20, held>>20)
	}
	s.must("down") // once more is fine
	s.must("up")
	s.must("up")
	s.stop()
	same(t, l, before, "at the end")
}

// TestWithoutIPv6: a machine whose owner has switched IPv6 off keeps it off.
func TestWithoutIPv6(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	for _, scope := range []string{"all", "default"} {
		if out, code := inClient(t, l, "sysctl", "-qw", "net.ipv6.conf."+scope+".disable_ipv6=1"); code != 0 {
			t.Fatal(out)
		}
	}
	before := record(t, l)
	for _, stack := range []string{"kernel", "userspace"} {
		s := start(t, l, upstreamToml(t, l)+fmt.Sprintf("[tun]\nstack = %q\n", stack), "--up")
		if st := s.await(api.On); st.TUN.IPv6 {
			t.Error("status says that the TUN has IPv6")
		}
		works(t, l)
		refusals(t, l, "closed.test:443")
		s.stop()
		same(t, l, before, "without IPv6, by the "+stack+" path,")
	}
}

// moment is when the service is killed.
type moment struct {
	name string
	// reach brings the service to the moment.
	reach func(s *service, delay time.Duration)
	times int
	most  time.Duration // of the random delay
}

func moments() []moment {
	return []moment{
		{"starting", func(s *service, delay time.Duration) {
			s.launch("--up")
			time.Sleep(delay)
		}, 6, 150 * time.Millisecond},
		{"soon after the start", func(s *service, delay time.Duration) {
			s.launch("--up")
			time.Sleep(delay)
		}, 2, 400 * time.Millisecond},
		{"on", func(s *service, delay time.Duration) {
			s.launch("--up")
			s.await(api.On)
			time.Sleep(delay)
		}, 2, 100 * time.Millisecond},
		{"stopping", func(s *service, delay time.Duration) {
			s.launch("--up")
			s.await(api.On)
			s.cmd.Process.Signal(syscall.SIGTERM)
			time.Sleep(delay)
		}, 4, 60 * time.Millisecond},
		{"undoing what an earlier kill left", func(s *service, delay time.Duration) {
			s.launch("--up")
			s.await(api.On)
			s.kill()
			s.launch()
			time.Sleep(delay)
		}, 4, 60 * time.Millisecond},
	}
}

// TestKill kills the service at random moments. A start and a stop after that,
// or a rescue, put everything back.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("ATLANTIC_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("ATLANTIC_SEED=%d", seed)
	for _, form := range resolvConfs() {
		t.Run(form, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, uint64(len(form))))
			l := owned(t, form)
			s := &service{t: t, lab: l, dir: t.TempDir()}
			if err := os.WriteFile(s.config(), []byte(upstreamToml(t, l)), 0o600); err != nil {
				t.Fatal(err)
			}
			before := record(t, l)
			left := 0
			for _, m := range moments() {
				for i := range m.times {
					delay := time.Duration(r.Int64N(int64(m.most)))
					m.reach(s, delay)
					s.kill()
					when := fmt.Sprintf("killed %s, after %v", m.name, delay)
					if snapshot.Diff(before, record(t, l)) != "" {
						left++
					} else if m.name == "on" {
						t.Errorf("%s: nothing was left behind, so nothing is tested", when)
					}
					if i%2 == 0 {
						s.rescue()
						same(t, l, before, when+" and rescued,")
						continue
					}
					s.launch()
					s.answers()
					if r.IntN(2) == 0 {
						time.Sleep(time.Duration(r.Int64N(int64(100 * time.Millisecond))))
					}
					s.stop()
					s.ended()
					same(t, l, before, when+", started and stopped,")
				}
			}
			t.Logf("%d kills left something behind", left)
		})
	}
}

// answers waits until the service answers anything.
func (s *service) answers() {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s.status().State != "" {
			return
		}
	}
	s.t.Fatalf("the service does not answer:\n%s", s.out)
}

// rescue runs atlanticd rescue, which has to succeed.
func (s *service) rescue() {
	s.t.Helper()
	if out, err := s.command("rescue", "--state", s.state()).CombinedOutput(); err != nil {
		s.t.Errorf("rescue: %v\n%s", err, out)
	}
}

// TestIntent: what the user wanted outlives a crash and a stop.
func TestIntent(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	s := start(t, l, upstreamToml(t, l))
	s.answers()
	if st := s.status(); st.State != api.Off {
		t.Fatalf("without --up it is %s", st.State)
	}
	s.must("up")
	s.kill()
	s.launch()
	s.await(api.On)
	works(t, l)
	s.stop()
	s.ended()
	same(t, l, before, "after SIGTERM")
	s.launch()
	s.await(api.On)
	s.must("down")
	s.kill()
	s.launch()
	s.answers()
	time.Sleep(300 * time.Millisecond)
	if st := s.status(); st.State != api.Off {
		t.Errorf("after down and a crash it is %s", st.State)
	}
	same(t, l, before, "after down and a crash")
}

// TestRescue restores the machine, whatever the journal is worth, but never
// under a running service.
func TestRescue(t *testing.T) {
	l := owned(t, "file")
	before := record(t, l)
	s := start(t, l, upstreamToml(t, l), "--up")
	s.await(api.On)
	out, err := s.command("rescue", "--state", s.state()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "running") {
		t.Errorf("rescue beside a running service: %v\n%s", err, out)
	}
	works(t, l)
	s.kill()
	journal := filepath.Join(s.state(), "journal")
	b, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	if len(lines) < 4 {
		t.Fatalf("the journal of a running service has %d lines:\n%s", len(lines), b)
	}
	lines[2][len(lines[2])/2] ^= 1
	if err := os.WriteFile(journal, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	s.rescue()
	same(t, l, before, "after a rescue with a damaged journal")
	s.launch()
	s.await(api.On)
	s.stop()
	same(t, l, before, "after a start, and a stop, that followed a rescue")
}

// refused runs the service as it was started, wants it to give up with that
// exit code and the words in what it says.
func (s *service) refused(code int, words ...string) {
	s.t.Helper()
	s.launch()
	select {
	case err := <-s.exited:
		s.exited <- err
	case <-time.After(10 * time.Second):
		s.kill()
		s.t.Errorf("it runs, although it should have refused to:\n%s", s.out)
		return
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d", got, code)
	}
	contains(s.t, s.out.String(), words...)
}

// contains wants each of the words in text.
func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("this does not say %q:\n%s", w, text)
		}
	}
}
