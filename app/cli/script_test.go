package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/apiserver"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"atlantic": func() { os.Exit(Main(os.Args[1:], Options{Version: "1.2.3"})) },
	})
}

// TestScripts runs the program as users do, against the real API server over
// real sockets: $ATLANTIC_SOCKET lets in, $GUEST_SOCKET takes everybody for a
// stranger, $ABSENT_SOCKET is not there. The command `backend` says how the
// service behaves from then on.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: serve,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"backend": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value(backendKey{}).(*fakeBackend).behave(ts, args)
			},
			"code": expectCode,
		},
	})
}

type backendKey struct{}

// expectCode runs a command that must end with the given exit code.
func expectCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func serve(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "atl") // $WORK is too long for a socket
	if err != nil {
		return err
	}
	b := newFakeBackend()
	env.Values[backendKey{}] = b
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	env.Defer(func() { cancel(); wg.Wait(); b.work.Wait(); os.RemoveAll(dir) })
	env.Setenv("GORACE", "atexit_sleep_ms=0") // under -race, each run would end with a second's sleep
	env.Setenv("ABSENT_SOCKET", filepath.Join(dir, "absent"))
	for name, peer := range map[string]localsock.Peer{
		localsock.PathVar: {Known: true, Admin: true, Name: "root"},
		"GUEST_SOCKET":    {Known: true, UID: 1001, Name: "mallory"},
	} {
		path := filepath.Join(dir, name[:1])
		ln, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		env.Setenv(name, path)
		srv := apiserver.New(b, apiserver.Options{Log: slog.New(slog.DiscardHandler),
			PeerOf: func(net.Conn) (localsock.Peer, error) { return peer, nil }})
		wg.Go(func() { srv.Serve(ctx, ln) })
	}
	return nil
}

// fakeBackend is a service whose starts end as the script says.
type fakeBackend struct {
	work     sync.WaitGroup
	mu       sync.Mutex
	st       api.Status
	choice   string
	former   api.Upstream // in use before the last choice
	mode     string       // how the next up ends: ok, refused, blocked, hang, gone (the service does)
	watchers map[chan api.Event]context.Context
}

func newFakeBackend() *fakeBackend {
	b := &fakeBackend{choice: "auto", mode: "ok", watchers: map[chan api.Event]context.Context{}}
	b.st = api.Status{Schema: 1, State: api.Off, Upstream: api.Upstream{Name: "direct", Scheme: "direct"},
		Protect: api.Protect{KillSwitch: "auto", Effect: "traffic leaves directly"}, Version: api.Versions{Service: "1.2.3", API: 1}}
	return b
}

func (b *fakeBackend) behave(ts *testscript.TestScript, args []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, arg := range args {
		switch name, value, _ := strings.Cut(arg, "="); name {
		case "up":
			b.mode = value
		case "unkept":
			b.st.Unkept = value
		case "busy":
			b.st.Flows = api.Flows{Open: 12, Total: 3456, Refused: 2, Carried: 3000, Reused: 1260}
			b.st.Bytes = api.Bytes{Up: 1_234_567, Down: 34_600_000, DirectUp: 10, DirectDown: 20}
			b.st.Latency = api.Latency{Added: api.Percentiles{P50: 0.08}, FirstByte: api.Percentiles{P50: 45, P95: 120}}
			b.st.Reuse, b.st.UDP.Blocked = 0.42, 3
			b.st.TUN = api.TUN{Name: "atlantic0", Path: "kernel", IPv6: true}
			b.st.DNS.Mode, b.st.Proxy = "fake-ip", "127.0.0.1:7890"
			b.st.Warnings = []string{"evil \x1b[31mname"}
			b.st.Since = time.Now().Add(-125 * time.Minute)
		default:
			ts.Fatalf("unknown behaviour %q", arg)
		}
	}
}

func (b *fakeBackend) Status() api.Status { b.mu.Lock(); defer b.mu.Unlock(); return b.st }

func (b *fakeBackend) SetPrefs(_ context.Context, p api.Prefs) (api.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.Upstream != nil {
		name := *p.Upstream
		b.former = b.st.Upstream
		switch {
		case name == "auto":
			b.st.Upstream = api.Upstream{Name: "direct", Scheme: "direct"}
		case name == "paris":
			b.st.Upstream = api.Upstream{Name: "paris", Scheme: "socks5", Address: "192.0.2.1:1080", RTTms: 23.4}
		case strings.HasPrefix(name, "socks5://"):
			address := name[strings.LastIndexAny(name, "@/")+1:]
			b.st.Upstream = api.Upstream{Name: address, Scheme: "socks5", Address: address}
		default:
			return b.st, &api.Error{Code: api.ErrUnknownName, Message: fmt.Sprintf("there is no upstream %q", name),
				Hint: "the names are: auto, direct, paris"}
		}
		b.choice = name
	}
	if p.On != nil && *p.On && b.st.State != api.On {
		b.move(api.Starting, "", "")
		b.work.Go(b.start)
	}
	if p.On != nil && !*p.On && b.st.State != api.Off {
		b.move(api.Stopping, "", "")
		b.work.Go(func() {
			time.Sleep(30 * time.Millisecond)
			b.mu.Lock()
			defer b.mu.Unlock()
			b.move(api.Off, "", "")
		})
	}
	return b.st, nil
}

// start ends a start as the script wants it.
func (b *fakeBackend) start() {
	time.Sleep(30 * time.Millisecond)
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.mode == "gone" && len(b.watchers) == 0 { // whoever watches sees the end
		b.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		b.mu.Lock()
	}
	switch b.mode {
	case "ok":
		b.move(api.On, "", "")
	case "refused":
		if b.former.Name != "" {
			b.st.Upstream, b.former = b.former, api.Upstream{}
		}
		b.move(api.Stopping, "the upstream 192.0.2.1:1080 refused the connection", "is it running?")
		b.move(api.Off, b.st.Cause, b.st.Hint)
	case "gone":
		b.move(api.Stopping, "", "")
		b.move(api.Off, "", "")
		for ch := range b.watchers {
			b.drop(ch)
		}
	case "blocked", "open":
		b.move(api.Blocked, "the upstream did not accept the password", "check the user name and the password")
	}
}

// move changes the state and tells the watchers; mu is held.
func (b *fakeBackend) move(s api.State, cause, hint string) {
	b.st.State, b.st.Cause, b.st.Hint = s, cause, hint
	b.st.Protect.Blocking = s == api.Blocked && b.mode != "open"
	b.st.Protect.Effect = map[api.State]string{api.Off: "traffic leaves directly", api.Blocked: "traffic is held back"}[s]
	if s == api.Blocked && b.mode == "open" {
		b.st.Protect.Effect = "no protection, traffic leaves directly"
	}
	st := b.st
	for ch, ctx := range b.watchers {
		select {
		case ch <- api.Event{Type: "status", Status: &st}:
		case <-ctx.Done():
		}
	}
}

func (b *fakeBackend) Watch(ctx context.Context) <-chan api.Event {
	ch := make(chan api.Event, 16)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers[ch] = ctx
	context.AfterFunc(ctx, func() { b.mu.Lock(); defer b.mu.Unlock(); b.drop(ch) })
	return ch
}

// drop ends the stream of one watcher; mu is held.
func (b *fakeBackend) drop(ch chan api.Event) {
	if _, there := b.watchers[ch]; there {
		delete(b.watchers, ch)
		close(ch)
	}
}

func (b *fakeBackend) Shutdown() {}

func (b *fakeBackend) Upstreams() api.Upstreams {
	b.mu.Lock()
	defer b.mu.Unlock()
	return api.Upstreams{Schema: 1, Choice: b.choice, Upstreams: []api.Upstream{
		{Name: "direct", Scheme: "direct", UDP: true, InUse: b.st.Upstream.Name == "direct", RTTms: 1.5},
		{Name: "paris", Scheme: "socks5", Address: "192.0.2.1:1080", InUse: b.st.Upstream.Name == "paris", RTTms: 23.4, Flows: 7,
			Failures: 2, Error: "timeout\nsecond line"}}}
}

func (b *fakeBackend) Flows() []api.Flow {
	if b.Status().State != api.On {
		return nil
	}
	return []api.Flow{{ID: 41, Network: "tcp", Inbound: "tun", Source: "10.0.0.1:5", Target: "example.com:443", Process: "/usr/bin/curl",
		Via: "paris", Rule: "default", Start: time.Now().Add(-3 * time.Second), Up: 1500, Down: 2_000_000,
		Phases: api.Phases{Dial: 20, TLS: 0, Connect: 21}}}
}

func (b *fakeBackend) Sessions() api.Sessions {
	return api.Sessions{Schema: 1, Sessions: []api.Session{{Upstream: "oxy", ID: "abc1", Domain: "example.com", Address: "pr.example:7777"}}}
}

func (b *fakeBackend) NewSession(_ context.Context, want api.NewSession) (api.Session, error) {
	if want.Upstream == "nobody" {
		return api.Session{}, &api.Error{Code: api.ErrUnknownName, Message: "no such upstream", Hint: "see atlantic upstreams"}
	}
	return api.Session{Upstream: "oxy", ID: "abc2", App: want.App, Domain: want.Domain}, nil
}

func (b *fakeBackend) KillFlow(id uint64) error {
	if id != 41 {
		return &api.Error{Code: api.ErrNotFound, Message: fmt.Sprintf("there is no flow %d", id), Hint: "see: atlantic flows"}
	}
	return nil
}

func (b *fakeBackend) Why(host string) (api.Why, error) {
	w := api.Why{Schema: 1, Host: host, Verdict: "auto", Rule: "default", Upstream: "paris", DNS: "a fake address; the upstream resolves the name", UDP: "through the upstream"}
	if strings.HasPrefix(host, "ads.") {
		w = api.Why{Schema: 1, Host: host, Verdict: "block", Rule: "rule 1: domain_suffix ads.example"}
	}
	return w, nil
}

func (b *fakeBackend) Config() api.Config {
	return api.Config{Schema: 1, Path: "/etc/atlantic/atlantic.toml", TOML: "[tun]\nenabled = true\n"}
}
