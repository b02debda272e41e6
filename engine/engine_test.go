package engine

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// bench is a whole engine in memory: a fake Host, and a CONNECT proxy that
// answers as it is told.
type bench struct {
	*Engine
	host *platformtest.Host
	dir  string
	done chan error
	stop context.CancelFunc
}

func newBench(t *testing.T, cfg *config.Config, prepare ...func(*Options)) *bench {
	t.Helper()
	b := &bench{host: platformtest.New(), dir: t.TempDir(), done: make(chan error, 1)}
	b.start(t, cfg, prepare...)
	return b
}

func (b *bench) start(t *testing.T, cfg *config.Config, prepare ...func(*Options)) {
	t.Helper()
	opt := Options{
		Config: cfg, Host: b.host, StateDir: b.dir, Version: "test",
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	for _, f := range prepare {
		f(&opt)
	}
	e, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	b.Engine = e
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	go func() { b.done <- e.Run(ctx) }()
	t.Cleanup(func() { b.end(t) })
}

// end stops Run and checks that nothing is left. It may be called twice.
func (b *bench) end(t *testing.T) {
	t.Helper()
	b.stop()
	select {
	case err, ok := <-b.done:
		if ok && err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not end")
	}
	b.done = make(chan error, 1)
	b.done <- nil
	if cur := b.host.Current(); cur.TUN != "" {
		t.Errorf("the machine is not restored: %+v", cur)
	}
	if n := b.host.OpenTUNs(); n != 0 {
		t.Errorf("%d TUN devices are left open", n)
	}
}

func (b *bench) waitFor(t *testing.T, want api.State) api.Status {
	t.Helper()
	var st api.Status
	for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if st = b.Status(); st.State == want {
			return st
		}
	}
	t.Fatalf("state is %s (%s), want %s", st.State, st.Cause, want)
	return st
}

func (b *bench) prefs(t *testing.T, p api.Prefs) error {
	t.Helper()
	_, err := b.SetPrefs(t.Context(), p)
	return err
}

func ptr[T any](v T) *T { return &v }

// testConfig has a TUN (the fake Host's), no local proxy, and one upstream.
func testConfig(upstream string) *config.Config {
	cfg := config.Default()
	cfg.Listen.Proxy = ""
	cfg.TUN.Stack = "userspace"
	if upstream != "" {
		cfg.Upstreams = []config.Upstream{{Name: "one", URL: upstream}}
	}
	return cfg
}

// fakeProxy answers every CONNECT with reply, which may be changed.
type fakeProxy struct {
	l     net.Listener
	reply chan string // holds one value: the reply in force
}

func newFakeProxy(t *testing.T, address, reply string) *fakeProxy {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p := &fakeProxy{l: l, reply: make(chan string, 1)}
	p.reply <- reply
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := <-p.reply
			p.reply <- r
			c.SetDeadline(time.Now().Add(2 * time.Second))
			for br := bufio.NewReader(c); ; {
				line, err := br.ReadString('\n')
				if err != nil || line == "\r\n" {
					break
				}
			}
			io.WriteString(c, r)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return p
}

func (p *fakeProxy) url() string { return "http://" + p.l.Addr().String() }

func (p *fakeProxy) answer(reply string) { <-p.reply; p.reply <- reply }

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

const (
	replyOK  = "HTTP/1.1 200 Connection established\r\n\r\n"
	reply407 = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUpAppliesAndDownRestores(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(p.url()))
	b.waitFor(t, api.Off)
	if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	st := b.waitFor(t, api.On)
	if st.TUN.Name == "" || st.TUN.Path != "userspace" || st.Upstream.Name != "one" {
		t.Errorf("status: %+v", st)
	}
	cur := b.host.Current()
	if !cur.Default4 || !cur.Default6 || !cur.LAN || len(cur.DNS) != 2 {
		t.Errorf("applied: %+v", cur)
	}
	if cur.DNS[0] != netip.MustParseAddr("198.18.0.2") {
		t.Errorf("dns: %v", cur.DNS)
	}
	if err := b.prefs(t, api.Prefs{On: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, api.Off)
	if cur := b.host.Current(); cur.TUN != "" {
		t.Errorf("after down: %+v", cur)
	}
}

// A first try that fails leaves the machine untouched, and says why.
func TestFirstFailureChangesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		reply string
		code  api.ErrorCode
	}{
		"407":  {reply407, api.ErrAuth},
		"html": {"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html>", api.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakeProxy(t, "127.0.0.1:0", tc.reply)
			b := newBench(t, testConfig(p.url()))
			if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
				t.Fatal(err)
			}
			var st api.Status
			for st = b.Status(); st.State != api.Off || st.Cause == ""; st = b.Status() {
				time.Sleep(5 * time.Millisecond)
			}
			if st.Code != tc.code || st.Hint == "" {
				t.Errorf("code %q, hint %q", st.Code, st.Hint)
			}
			if n := len(b.host.Opened()); n != 0 {
				t.Errorf("%d TUNs were opened", n)
			}
			if in, err := loadIntent(b.dir); err != nil || in.On {
				t.Errorf("intent: %+v, %v", in, err)
			}
		})
	}
}

// An upstream that dies holds traffic; when it is back, so is traffic.
func TestUpstreamLostAndBack(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(p.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	addr := p.l.Addr().String()
	p.l.Close()
	u := b.ups.current()
	err := u.Check(t.Context())
	if err == nil {
		t.Fatal("a closed port answers")
	}
	b.observe(u, err) // as route does after a flow's dial
	st := b.waitFor(t, api.Blocked)
	if st.Code != api.ErrRefused || !st.Protect.Blocking || !b.held.Load() {
		t.Errorf("status: %+v", st)
	}
	if b.host.Current().TUN == "" {
		t.Error("the TUN was given up while blocked")
	}
	newFakeProxy(t, addr, replyOK)
	b.waitFor(t, api.On)
	if b.held.Load() {
		t.Error("traffic is still held")
	}
}

// A service that comes back with a kept intent catches traffic before it asks
// the upstream, and blocks if that fails.
func TestRestartBlocksUntilUpstreamAnswers(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(p.url())
	b := newBench(t, cfg)
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	b.end(t)
	p.answer(reply407)
	b.host = platformtest.New()
	b.done = make(chan error, 1)
	b.start(t, cfg)
	st := b.waitFor(t, api.Blocked)
	for st.Code != api.ErrAuth {
		time.Sleep(5 * time.Millisecond)
		st = b.Status()
	}
	if b.host.Current().TUN == "" || !b.held.Load() {
		t.Error("traffic is not caught")
	}
	if err := b.prefs(t, api.Prefs{On: ptr(false)}); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, api.Off)
}

func TestUnreadableIntentBlocks(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "cut": `{"version":1,"on":tr`, "future": `{"version":9,"on":false,"upstream":"","proven":false}`,
		"unknown field": `{"version":1,"on":false,"upstream":"","proven":false,"x":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{host: platformtest.New(), dir: t.TempDir(), done: make(chan error, 1)}
			if err := os.WriteFile(filepath.Join(b.dir, "intent.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			p := newFakeProxy(t, "127.0.0.1:0", replyOK)
			b.start(t, testConfig(p.url()))
			st := b.waitFor(t, api.Blocked)
			if st.Code != api.ErrState || st.Hint == "" {
				t.Errorf("status: %+v", st)
			}
			for b.host.Current().TUN == "" {
				time.Sleep(5 * time.Millisecond)
			}
			if b.Status().State != api.Blocked {
				t.Error("opened of itself")
			}
			b.prefs(t, api.Prefs{On: ptr(true)})
			b.waitFor(t, api.On)
		})
	}
}

func TestApplyFailureUndoes(t *testing.T) {
	b := newBench(t, testConfig(""))
	b.host.FailApply(errors.New("netlink says no"))
	b.prefs(t, api.Prefs{On: ptr(true)})
	var st api.Status
	for st = b.Status(); st.State != api.Off || st.Cause == ""; st = b.Status() {
		time.Sleep(5 * time.Millisecond)
	}
	if !strings.Contains(st.Cause, "netlink says no") {
		t.Errorf("cause: %q", st.Cause)
	}
	if n := b.host.OpenTUNs(); n != 0 {
		t.Errorf("%d TUNs left open", n)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := testConfig("")
	cfg.Listen.Proxy = l.Addr().String()
	b := newBench(t, cfg, func(o *Options) { o.NoTUN = true })
	b.prefs(t, api.Prefs{On: ptr(true)})
	var st api.Status
	for st = b.Status(); st.State != api.Off || st.Cause == ""; st = b.Status() {
		time.Sleep(5 * time.Millisecond)
	}
	if st.Code != api.ErrPortInUse || st.Hint == "" {
		t.Errorf("status: %+v", st)
	}
}

func TestUseWhileOn(t *testing.T) {
	one := newFakeProxy(t, "127.0.0.1:0", replyOK)
	two := newFakeProxy(t, "127.0.0.1:0", reply407)
	b := newBench(t, testConfig(one.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	var ae *api.Error
	if err := b.prefs(t, api.Prefs{Upstream: ptr("nobody")}); !errors.As(err, &ae) || ae.Code != api.ErrUnknownName || ae.Hint == "" {
		t.Errorf("unknown name: %v", err)
	}
	if err := b.prefs(t, api.Prefs{Upstream: ptr(two.url())}); !errors.As(err, &ae) || ae.Code != api.ErrAuth {
		t.Errorf("upstream that refuses: %v", err)
	}
	if got := b.Status().Upstream.Name; got != "one" {
		t.Errorf("a failed switch has changed the upstream to %s", got)
	}
	two.answer(replyOK)
	withPassword := strings.Replace(two.url(), "http://", "http://user:hunter2@", 1)
	if err := b.prefs(t, api.Prefs{Upstream: ptr(withPassword)}); err != nil {
		t.Errorf("switch: %v", err)
	}
	if got := b.Upstreams(); strings.Contains(got.Choice, "hunter2") {
		t.Errorf("the password is shown: %s", got.Choice)
	}
	if in, err := loadIntent(b.dir); err != nil || in.Upstream != withPassword {
		t.Errorf("intent: %v", err)
	}
	if info, err := os.Stat(filepath.Join(b.dir, "intent.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("intent's mode: %v %v", info.Mode(), err)
	}
}

func TestTUNDiesAndIsMadeAnew(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(p.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	b.host.BreakTUN()
	deadline := time.Now().Add(5 * time.Second)
	for len(b.host.Opened()) < 2 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	b.waitFor(t, api.On)
	if n := len(b.host.Opened()); n != 2 {
		t.Errorf("%d TUNs were opened, want 2", n)
	}
}

func TestDownWhileStarting(t *testing.T) {
	// An upstream that accepts and says nothing keeps the start waiting.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := newBench(t, testConfig("http://"+l.Addr().String()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.Starting)
	b.prefs(t, api.Prefs{On: ptr(false)})
	b.waitFor(t, api.Off)
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code api.ErrorCode
	}{
		{&net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}, api.ErrPortInUse},
		{platform.ErrPermission, api.ErrSystem},
		{platform.ErrNoTUN, api.ErrSystem},
		{errors.New("x"), api.ErrInternal},
	} {
		if got := Explain(tc.err); got.Code != tc.code || got.Code != api.ErrInternal && got.Hint == "" {
			t.Errorf("%v: %+v", tc.err, got)
		}
	}
}

func TestWhy(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(p.url())
	cfg.Rules = []config.Rule{
		{DomainSuffix: []string{"ads.example"}, Via: "block"},
		{Port: []config.PortRange{{From: 22, To: 22}}, Via: "direct"},
	}
	b := newBench(t, cfg)
	for host, want := range map[string]string{
		"x.ads.example": "block/", "example.com": "auto/one", "example.com:22": "direct/direct",
		"192.0.2.7": "auto/one", "[2001:db8::1]:443": "auto/one", "127.0.0.1": "direct/direct",
	} {
		w, err := b.Why(host)
		if err != nil || w.Verdict+"/"+w.Upstream != want {
			t.Errorf("%s: %s/%s (%v), want %s", host, w.Verdict, w.Upstream, err, want)
		}
	}
	for _, bad := range []string{"", "a b", "x:0", "x:99999", "a/b"} {
		if _, err := b.Why(bad); err == nil {
			t.Errorf("%q is taken for a host", bad)
		}
	}
}

// Why says what route does: a rule outranks protect.udp, and programs that rules
// name may go another way.
func TestWhyIsWhatRouteDoes(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(p.url())
	cfg.Protect.UDP = "block"
	cfg.Rules = []config.Rule{
		{Process: []string{"curl"}, Via: "block"},
		{Domain: []string{"game.example"}, Via: "direct"},
	}
	b := newBench(t, cfg)
	for host, want := range map[string][2]string{
		"game.example": {"direct", "blocked"}, "other.example": {"blocked (protect.udp)", "blocked"}, "127.0.0.1": {"direct", "blocked"},
	} {
		w, err := b.Why(host)
		if err != nil || w.UDP != want[0] || len(w.Programs) != 1 || w.Programs[0].Program != "curl" ||
			w.Programs[0].Verdict != "block" || w.Programs[0].UDP != want[1] {
			t.Errorf("%s: %+v (%v)", host, w, err)
		}
	}
	query := []byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04game\x07example\x00\x00\x01\x00\x01")
	reply, err := b.dns.AppendAnswer(t.Context(), nil, query, false)
	if err != nil || len(reply) < 4 {
		t.Fatal(err)
	}
	fake := netip.AddrFrom4([4]byte(reply[len(reply)-4:]))
	if w, err := b.Why(fake.String()); err != nil || w.Host != "game.example" || w.Verdict != "direct" {
		t.Errorf("a fake address: %+v (%v)", w, err)
	}
}

// While a kept intent is still being carried out, Why says what holds traffic.
func TestWhyWhileConnecting(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	p.silence()
	b := kept(t, testConfig(p.url()), intent{On: true, Proven: true})
	until(t, "traffic is held", b.held.Load)
	if w, err := b.Why("example.com"); err != nil || !strings.HasSuffix(w.Rule, "held now: the service is still connecting") {
		t.Errorf("%+v, %v", w, err)
	}
	p.speak(replyOK)
	b.waitFor(t, api.On)
	if w, err := b.Why("example.com"); err != nil || w.Rule != "default" {
		t.Errorf("%+v, %v", w, err)
	}
}
