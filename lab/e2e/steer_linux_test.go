package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// pair starts two proxies and configures them as a, which is used unless
// somebody says otherwise, and b. To ask whether they carry early data would be a
// flow of its own.
func pair(t *testing.T, l *lab.Lab) (a, b *proxy.Proxy, toml string) {
	t.Helper()
	var err error
	if a, err = l.StartProxy(lab.ProxyOptions{Scheme: proxy.HTTP, Index: 0}); err == nil {
		b, err = l.StartProxy(lab.ProxyOptions{Scheme: proxy.SOCKS5, Index: 1, User: "user", Password: "right"})
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b, labDNS + fmt.Sprintf("[[upstream]]\nname = \"a\"\nurl = %q\nearly_data = \"off\"\n[[upstream]]\nname = \"b\"\nurl = %q\nearly_data = \"off\"\n", a.URL(), b.URL())
}

// served is how many flows each proxy carries for fn.
func served(a, b *proxy.Proxy, fn func()) (byA, byB int64) {
	a0, b0 := a.Counters.Served.Load(), b.Counters.Served.Load()
	fn()
	return a.Counters.Served.Load() - a0, b.Counters.Served.Load() - b0
}

// TestSteer is an afternoon at the command line.
func TestSteer(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	a, b, toml := pair(t, l)
	s := start(t, l, toml)
	s.answers()
	shown := s.watch()
	shown(api.Off)
	s.must("up")
	shown(api.Starting, api.On)
	byA := func(when string) {
		t.Helper()
		if x, y := served(a, b, func() { works(t, l) }); x != 1 || y != 0 {
			t.Errorf("%s: %d flows by a, %d by b", when, x, y)
		}
	}
	byA("at first")
	open := dial(t, l, "tcp", fmt.Sprintf("example.test:%d", origin.PortEcho))
	send := strings.Repeat("atlantic", 500)
	io.WriteString(open, send)
	if _, err := io.ReadFull(open, make([]byte, len(send))); err != nil {
		t.Fatal(err)
	}
	s.flow(t, "a", len(send))

	s.must("use", "b")
	if x, y := served(a, b, func() { works(t, l) }); x != 0 || y != 1 {
		t.Errorf("after use b: %d flows by a, %d by b", x, y)
	}
	if st := s.status(); st.Upstream.Name != "b" || !st.Upstream.UDP {
		t.Errorf("upstream is %+v", st.Upstream)
	}
	// What was open goes on by a.
	io.WriteString(open, "still here")
	if _, err := io.ReadFull(open, make([]byte, len("still here"))); err != nil {
		t.Errorf("the flow that was open before: %v", err)
	}
	s.flow(t, "a", len(send)+len("still here"))

	var ups api.Upstreams
	if err := json.Unmarshal([]byte(s.must("upstreams", "--json")), &ups); err != nil || ups.Choice != "b" || len(ups.Upstreams) != 3 {
		t.Errorf("upstreams: %+v, %v", ups, err)
	}
	contains(t, s.must("why", "example.test"), "example.test goes through b", "default", "by the upstream, which is sent the name")
	s.stop()
	shown(api.Stopping, api.Off)
	s.launch()
	if st := s.await(api.On); st.Upstream.Name != "b" {
		t.Errorf("after a restart the upstream is %s", st.Upstream.Name)
	}
	s.must("use", "auto")
	byA("after use auto")
	time.Sleep(1500 * time.Millisecond) // the watcher comes back after a second
	s.must("down")
	shown(api.Stopping, api.Off)
	s.stop()
}

// flow waits until `flows --json` shows the echo flow as it should be.
func (s *service) flow(t *testing.T, via string, bytes int) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		var list api.FlowList
		last = s.must("flows", "--json")
		if err := json.Unmarshal([]byte(last), &list); err != nil || list.Schema != api.Schema {
			t.Fatalf("flows --json: %v\n%s", err, last)
		}
		for _, f := range list.Flows {
			if f.Target == fmt.Sprintf("example.test:%d", origin.PortEcho) && f.Network == "tcp" && f.Inbound == "tun" &&
				f.Via == via && f.Up == uint64(bytes) && f.Down == uint64(bytes) && f.ID != 0 && f.Rule == "default" {
				return
			}
		}
	}
	t.Errorf("no flow to example.test via %s with %d bytes each way:\n%s", via, bytes, last)
}

// watch starts `status --watch --json`, which ends with the test. The function
// it returns waits until it has shown those states, in that order.
func (s *service) watch() (shown func(want ...api.State)) {
	s.t.Helper()
	cmd := s.lab.Command(lab.Client, filepath.Join(bin, "atlantic"), "--socket", s.socket(), "status", "--watch", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	states := make(chan api.State, 1000)
	go func() { // ends with the program
		defer close(states)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var st api.Status
			if err := json.Unmarshal(lines.Bytes(), &st); err != nil || st.Schema != api.Schema {
				s.t.Errorf("status --watch --json: %v: %s", err, lines.Bytes())
			}
			states <- st.State
		}
	}()
	s.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		for range states {
		}
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("status --watch ends with %v at Ctrl-C", err)
		}
	})
	return func(want ...api.State) {
		s.t.Helper()
		late := time.After(5 * time.Second)
		for _, w := range want {
			for got := api.State(""); got != w; {
				select {
				case got = <-states:
				case <-late:
					s.t.Fatalf("status --watch does not show %q of %v", w, want)
				}
			}
		}
	}
}

// TestRules sends flows that rules decide about, and looks where they come by.
func TestRules(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	a, b, toml := pair(t, l)
	toml += `
[[rule]]
domain = ["blocked.test"]
domain_suffix = ["ads.test"]
via = "block"

[[rule]]
port = [9]
via = "block"

[[rule]]
cidr = ["2001:db8:f::b:10/128"]
via = "direct"

[[rule]]
domain_suffix = ["office.test"]
via = "b"

[[rule]]
process = ["curl"]
domain = ["app.test"]
via = "b"
`
	router, err := l.Capture("")
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	s := start(t, l, toml, "--up")
	s.await(api.On)
	fetch := func(url string) func() {
		return func() {
			if _, err := l.Fetch(t.Context(), lab.Client, url, lab.FetchOptions{Args: []string{"--max-time", "5", "-g"}}); err != nil {
				t.Error(err)
			}
		}
	}
	for _, tc := range []struct {
		name     string
		do       func()
		byA, byB int64
	}{
		{"no rule", fetch("http://example.test/"), 1, 0},
		{"suffix", fetch("http://www.office.test/"), 0, 1},
		{"suffix itself", fetch("http://office.test/"), 0, 1},
		{"not the suffix", fetch("http://backoffice.test/"), 1, 0},
		{"process", fetch("http://app.test/"), 0, 1},
		{"another process", func() {
			c := dial(t, l, "tcp", "app.test:80")
			defer c.Close()
			_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
		}, 1, 0},
		{"direct by address", fetch("http://[2001:db8:f::b:10]/"), 0, 0},
	} {
		x, y := served(a, b, tc.do)
		if x != tc.byA || y != tc.byB {
			t.Errorf("%s: %d flows by a and %d by b, want %d and %d", tc.name, x, y, tc.byA, tc.byB)
		}
	}
	refusals(t, l, "blocked.test:80", "x.ads.test:443", "example.test:9", "198.51.100.10:9")
	for host, want := range map[string]string{
		"blocked.test": "is blocked", "x.ads.test": "is blocked", "office.test": "goes through b", "2001:db8:f::b:10": "is reached directly",
	} {
		contains(t, s.must("why", host), host, want, "rule")
	}
	if st := s.status(); st.Flows.Blocked != 4 {
		t.Errorf("%d flows were blocked, not 4", st.Flows.Blocked)
	}
	direct := capture.Tuple{Proto: "tcp", Dst: netip.AddrPortFrom(lab.Origin6(), 80)}
	proxies := []capture.Tuple{{Proto: "tcp", Dst: a.Addr()}, {Proto: "tcp", Dst: b.Addr()}}
	leaks, err := router.Leaks(append(proxies, direct)...)
	if err != nil || len(leaks) > 0 {
		t.Errorf("past the proxies: %v, %v", leaks, err)
	}
	if leaks, _ := router.Leaks(proxies...); len(leaks) == 0 {
		t.Error("the router has not seen the direct flow")
	}
	s.stop()
}

// refusals wants each address to be refused at once.
func refusals(t *testing.T, l *lab.Lab, addresses ...string) {
	t.Helper()
	for _, address := range addresses {
		host, port, _ := net.SplitHostPort(address)
		addrs, err := l.Resolve(t.Context(), lab.Client, host)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		begin := time.Now()
		c, err := l.NS(lab.Client).DialContext(t.Context(), "tcp", net.JoinHostPort(addrs[0].String(), port))
		if err == nil {
			err = resetOf(c)
		}
		if err == nil || !isRefusal(err) || time.Since(begin) > 5*time.Second {
			t.Errorf("%s: %v after %v", address, err, time.Since(begin))
		}
	}
}

// TestLocalProxy uses the service as somebody without rights can: no TUN, apps
// that are told of the proxy.
func TestLocalProxy(t *testing.T) {
	l := owned(t, "file")
	a, b, toml := pair(t, l)
	before := record(t, l)
	dir := folder(t, l, "user")
	s := &service{t: t, lab: l, dir: dir, wrap: asNobody()}
	toml += "[[rule]]\ndomain_suffix = [\"www.example.test\"]\nvia = \"b\"\n[[rule]]\ndomain = [\"blocked.test\"]\nvia = \"block\"\n"
	if err := os.WriteFile(s.config(), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, s.config()} {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	s.launch("--no-tun", "--up")
	atlantic := append(asNobody(), filepath.Join(bin, "atlantic"), "--socket", s.socket())
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if out, code := inClient(t, l, append(atlantic, "status")...); code == 0 {
			contains(t, out, "On", "127.0.0.1:7890")
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("status: exit code %d\n%s", code, out)
		}
	}
	same(t, l, before, "without a TUN")
	router, err := l.Capture("")
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	for _, by := range [][]string{
		{"-x", "http://127.0.0.1:7890"}, {"-x", "http://127.0.0.1:7890", "--proxytunnel"}, {"--socks5-hostname", "127.0.0.1:7890"},
	} {
		const lookups = -1 // of the name's other addresses, which are closed too
		for _, tc := range []struct {
			url      string
			byA, byB int64
			fails    bool
		}{
			{"http://example.test/proto", 1, 0, false},
			{"https://example.test/proto", 1, 0, false},
			{"https://www.example.test/proto", 0, 1, false},
			{"http://198.51.100.10/proto", 1, 0, false},
			{"https://blocked.test/", 0, 0, true},
			{"https://closed.test/", lookups, 0, true},
		} {
			x, y := served(a, b, func() {
				f, err := l.Fetch(t.Context(), lab.Client, tc.url, lab.FetchOptions{Args: append([]string{"--max-time", "5"}, by...)})
				if (err != nil) != tc.fails {
					t.Errorf("%v %s: %v", by, tc.url, err)
				} else if err == nil && f.Status != 200 {
					t.Errorf("%v %s: status %d", by, tc.url, f.Status)
				}
			})
			if x != tc.byA && tc.byA != lookups || y != tc.byB {
				t.Errorf("%v %s: %d flows by a and %d by b", by, tc.url, x, y)
			}
		}
	}
	// curl's own: for its --write-out it looks this machine's name up.
	resolver := capture.Tuple{Proto: "udp", Dst: netip.AddrPortFrom(lab.DNS4(), 53)}
	leaks, err := router.Leaks(resolver, capture.Tuple{Proto: "tcp", Dst: a.Addr()}, capture.Tuple{Proto: "tcp", Dst: b.Addr()})
	if err != nil || len(leaks) > 0 {
		t.Errorf("past the proxies: %v, %v", leaks, err)
	}
	if out, code := inClient(t, l, append(atlantic, "down")...); code != 0 {
		t.Errorf("down: exit code %d\n%s", code, out)
	}
	if _, err := l.NS(lab.Client).DialContext(t.Context(), "tcp", "127.0.0.1:7890"); err == nil {
		t.Error("the local proxy still listens after down")
	}
	s.stop()
	same(t, l, before, "at the end")
}
