package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

func (s *service) upstream(name string) (u api.Upstream) {
	s.t.Helper()
	var all api.Upstreams
	if err := json.Unmarshal([]byte(s.must("upstreams", "--json")), &all); err != nil {
		s.t.Fatal(err)
	}
	for _, u := range all.Upstreams {
		if u.Name == name {
			return u
		}
	}
	s.t.Fatalf("no upstream %q in %+v", name, all)
	return u
}

// TestGroupFailsOver: a group goes on without the member that is gone, and
// comes back to it.
func TestGroupFailsOver(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	a, b, toml := pair(t, l)
	s := start(t, l, toml+`
[[group]]
name = "both"
members = ["a", "b"]
policy = "failover"
`, "--up")
	s.await(api.On)
	s.must("use", "both")
	if x, y := served(a, b, func() { works(t, l) }); x == 0 || y != 0 {
		t.Errorf("%d flows by a, %d by b; want all by a", x, y)
	}
	a.Close()
	for range 5 {
		works(t, l)
	}
	if b.Counters.Served.Load() < 5 {
		t.Errorf("%d flows by b", b.Counters.Served.Load())
	}
	u := s.upstream("both")
	if len(u.Endpoints) != 2 || u.Scheme != "group" {
		t.Fatalf("%+v", u)
	}
	for _, e := range u.Endpoints {
		if e.Name == "a" && e.Failures == 0 || e.Name == "b" && e.State != "ok" {
			t.Errorf("%+v", e)
		}
	}
	if st := s.status(); st.State != api.On || st.Upstream.Name != "both" {
		t.Errorf("%s by %q: %s", st.State, st.Upstream.Name, st.Cause)
	}
}

// logins records the names that apps' flows come under.
type logins struct {
	mu   sync.Mutex
	seen []string
}

func (n *logins) admit(user, password string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, user)
	return password == "right"
}

func (n *logins) last() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.seen) == 0 {
		return ""
	}
	return n.seen[len(n.seen)-1]
}

// TestSessions: a provider's identity stays the same until it is asked to
// change; then new flows have another and open ones keep theirs.
func TestSessions(t *testing.T) {
	for _, scheme := range []proxy.Scheme{proxy.HTTP, proxy.SOCKS5} {
		t.Run(string(scheme), func(t *testing.T) {
			l := lab.NewTest(t, lab.Options{})
			var names logins
			p, err := l.StartProxy(lab.ProxyOptions{Scheme: scheme, Admit: names.admit})
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, l, labDNS+fmt.Sprintf(`
[[provider]]
name = "prov"
kind = "generic"
scheme = %q
host = %q
port = %d
username = "alice"
password = "right"
country = "de"
username_format = "{user}-cc-{country}[-sid-{session}]"
session = "sticky-10m"
`, scheme, p.Addr().Addr(), p.Addr().Port()), "--up")
			s.await(api.On)
			for range 3 {
				works(t, l)
			}
			first := names.last()
			if !regexp.MustCompile(`^alice-cc-de-sid-[a-z0-9]{8}$`).MatchString(first) {
				t.Fatalf("the flows come as %q", first)
			}
			show := s.must("session", "show")
			if id := first[len("alice-cc-de-sid-"):]; !strings.Contains(show, id) || strings.Contains(show, "right") {
				t.Errorf("session show does not show %s:\n%s", id, show)
			}
			open := dial(t, l, "tcp", fmt.Sprintf("example.test:%d", origin.PortEcho))
			out := s.must("session", "new")
			for range 3 {
				works(t, l)
			}
			second := names.last()
			if second == first || !strings.HasPrefix(second, "alice-cc-de-sid-") || !strings.Contains(out, second[len("alice-cc-de-sid-"):]) {
				t.Errorf("after session new the flows come as %q, before as %q:\n%s", second, first, out)
			}
			if _, err := open.Write([]byte("still here")); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(open, make([]byte, len("still here"))); err != nil {
				t.Errorf("the flow that was open has ended: %v", err)
			}

			// A provider that takes no new identity changes nothing.
			p.SetFault(proxy.Auth)
			if _, stderr, code := s.cli("session", "new"); code != 1 || !strings.Contains(stderr, "the old one stays") {
				t.Errorf("exit %d: %s", code, stderr)
			}
			p.SetFault(proxy.None)
			if _, stderr, code := s.cli("session", "new", "--upstream", "direct"); code != 1 || !strings.Contains(stderr, "fixed credentials") {
				t.Errorf("exit %d: %s", code, stderr)
			}
			for _, unknown := range []string{"nobody", "socks5://u:secret@192.0.2.1:1"} {
				if _, stderr, code := s.cli("session", "new", "--upstream", unknown); code != 1 || !strings.Contains(stderr, "no upstream named") || strings.Contains(stderr, "secret") {
					t.Errorf("exit %d: %s", code, stderr)
				}
			}
		})
	}
}

// TestList: proxies from a file, of which one is dead and one line is rubbish;
// a file that is emptied changes nothing.
func TestList(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	a, b, toml := pair(t, l)
	dir := folder(t, l, "list")
	file := filepath.Join(dir, "all.txt")
	dead := net.JoinHostPort(lab.Closed4().String(), "1080")
	lines := fmt.Sprintf("# mine\r\n%s\r\nrubbish here\r\nsocks5://%s:user:right\r\nhttp://%s\r\n", dead, b.Addr(), a.Addr())
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, l, toml+fmt.Sprintf("[[provider]]\nname = \"list\"\nkind = \"list\"\nurl = %q\nrefresh = \"1m\"\n", file), "--up")
	s.await(api.On)
	for deadline := time.Now().Add(10 * time.Second); len(s.upstream("list").Endpoints) != 3; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s.upstream("list"))
		}
	}
	s.must("use", "list")
	for range 6 {
		works(t, l)
	}
}
