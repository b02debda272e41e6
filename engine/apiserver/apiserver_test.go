package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBackend records what reaches it.
type fakeBackend struct {
	mu       sync.Mutex
	status   api.Status
	prefs    []api.Prefs
	killed   []uint64
	hosts    []string
	shutdown int
	watchers map[chan api.Event]struct{}
}

func newFake() *fakeBackend {
	return &fakeBackend{status: api.Status{Schema: 1, State: api.On, Version: api.Versions{Service: "test", API: 1}},
		watchers: map[chan api.Event]struct{}{}}
}

func (b *fakeBackend) Status() api.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *fakeBackend) SetPrefs(_ context.Context, p api.Prefs) (api.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.prefs = append(b.prefs, p)
	if p.Upstream != nil && *p.Upstream == "nobody" {
		return api.Status{}, &api.Error{Code: api.ErrUnknownName, Message: "no such upstream", Hint: "see atlantic upstreams"}
	}
	if p.Upstream != nil && *p.Upstream == "panic" {
		panic("on purpose")
	}
	return b.status, nil
}

func (b *fakeBackend) Watch(ctx context.Context) <-chan api.Event {
	ch := make(chan api.Event, 4)
	b.mu.Lock()
	b.watchers[ch] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() { b.drop(ch) })
	return ch
}

func (b *fakeBackend) drop(ch chan api.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.watchers[ch]; ok {
		delete(b.watchers, ch)
		close(ch)
	}
}

// emit hands ev to every watcher that has room, and drops the others.
func (b *fakeBackend) emit(ev api.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.watchers {
		select {
		case ch <- ev:
		default:
			delete(b.watchers, ch)
			close(ch)
		}
	}
}

// end closes every watcher's channel.
func (b *fakeBackend) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.watchers {
		delete(b.watchers, ch)
		close(ch)
	}
}

func (b *fakeBackend) watching() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.watchers)
}

func (b *fakeBackend) Shutdown() { b.mu.Lock(); defer b.mu.Unlock(); b.shutdown++ }
func (b *fakeBackend) Upstreams() api.Upstreams {
	return api.Upstreams{Schema: 1, Choice: "auto", Upstreams: []api.Upstream{{Name: "a\"b\\c\nd", RTTms: 12}}}
}
func (b *fakeBackend) Flows() []api.Flow { return nil }
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
	b.mu.Lock()
	defer b.mu.Unlock()
	if id != 7 {
		return &api.Error{Code: api.ErrNotFound, Message: "no such flow"}
	}
	b.killed = append(b.killed, id)
	return nil
}
func (b *fakeBackend) Why(host string) (api.Why, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts = append(b.hosts, host)
	if host == "broken" {
		return api.Why{}, errors.New("it broke")
	}
	return api.Why{Schema: 1, Host: host}, nil
}
func (b *fakeBackend) Config() api.Config { return api.Config{Schema: 1, TOML: "# none"} }

var (
	adminPeer = localsock.Peer{UID: 0, Known: true, Admin: true, Name: "root"}
	guestPeer = localsock.Peer{UID: 1001, Known: true, Name: "mallory"}
)

// start serves b on a real unix socket, every caller being peer, and returns
// the socket's path.
func start(t *testing.T, b Backend, peer localsock.Peer, peerErr error) string {
	t.Helper()
	return startServer(t, New(b, Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		PeerOf: func(net.Conn) (localsock.Peer, error) { return peer, peerErr }}))
}

// startServer is start for a server that the test has made.
func startServer(t *testing.T, srv *Server) string {
	t.Helper()
	return startServerUntil(context.Background(), t, srv)
}

func startServerUntil(ctx context.Context, t *testing.T, srv *Server) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir may be too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve does not end with its context")
		}
	})
	return path
}

// call makes one request over a fresh connection; edit may change it.
func call(t *testing.T, path, method, target, body string, edit func(*http.Request)) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://atlantic"+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		req.Header.Set("Content-Type", "application/json")
	}
	if edit != nil {
		edit(req)
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	if strings.HasPrefix(target, "/v1/watch") && resp.StatusCode == http.StatusOK {
		line, _ := bufio.NewReader(resp.Body).ReadString('\n')
		return resp, line
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestCalls(t *testing.T) {
	b := newFake()
	path := start(t, b, adminPeer, nil)
	for _, tc := range []struct {
		method, target, body string
		code                 int
		want                 string
	}{
		{"GET", "/v1/status", "", 200, `"state":"on"`},
		{"PATCH", "/v1/prefs", `{"on":true,"upstream":"auto"}`, 200, `"state":"on"`},
		{"PATCH", "/v1/prefs", `{}`, 200, `"state":"on"`},
		{"PATCH", "/v1/prefs", `{"upstream":"nobody"}`, 404, `"code":"unknown_upstream"`},
		{"PATCH", "/v1/prefs", `{"upstream":"panic"}`, 500, `"code":"internal"`},
		{"GET", "/v1/upstreams", "", 200, `"choice":"auto"`},
		{"GET", "/v1/flows", "", 200, `{"schema":1,"flows":[]}`},
		{"DELETE", "/v1/flows/7", "", 200, "{}"},
		{"DELETE", "/v1/flows/8", "", 404, `"code":"not_found"`},
		{"DELETE", "/v1/flows/x", "", 400, "is a number"},
		{"DELETE", "/v1/flows/", "", 404, `"code":"not_found"`},
		{"DELETE", "/v1/flows/7/8", "", 404, `"code":"not_found"`},
		{"GET", "/v1/session", "", 200, `"id":"abc1"`},
		{"POST", "/v1/session/new", `{"domain":"example.com"}`, 200, `{"schema":1,"upstream":"oxy","id":"abc2","domain":"example.com"`},
		{"POST", "/v1/session/new", `{"upstream":"nobody"}`, 404, "no such upstream"},
		{"POST", "/v1/session/new", `{"path":"/etc/passwd"}`, 400, "unknown field"},
		{"POST", "/v1/session/new", `{"app":"` + strings.Repeat("x", 5000) + `"}`, 400, "longer than"},
		{"GET", "/v1/why?host=example.com", "", 200, `"host":"example.com"`},
		{"GET", "/v1/why?host=broken", "", 500, "it broke"},
		{"GET", "/v1/why", "", 400, "host is missing"},
		{"GET", "/v1/why?host=a&host=b", "", 400, "repeated"},
		{"GET", "/v1/why?host=a%0ab", "", 400, "not a host name"},
		{"GET", "/v1/why?host=" + strings.Repeat("a", 300), "", 400, "not a host name"},
		{"GET", "/v1/config", "", 200, `"toml":"# none"`},
		{"GET", "/v1/watch", "", 200, `"type":"status"`},
		{"POST", "/v1/shutdown", "", 202, "{}"},
		// A body that says nothing is as good as none.
		{"POST", "/v1/session/new", "", 200, `"id":"abc2"`},
		{"POST", "/v1/session/new", " ", 200, `"id":"abc2"`},
		{"POST", "/v1/shutdown", "{}", 202, "{}"},
		{"POST", "/v1/shutdown", `{"now":true}`, 400, "unknown field"},
		{"POST", "/v1/shutdown", "null", 400, "no object"},
		{"POST", "/v1/shutdown", "x", 400, "not the JSON"},
		{"DELETE", "/v1/flows/7", "{}", 200, "{}"},
		{"DELETE", "/v1/flows/7", "[]", 400, "not the JSON"},
		{"PATCH", "/v1/prefs", "", 400, "missing"},
		// What a later version has.
		{"GET", "/v1/health", "", 501, `"/v1/health is not in this version"`},
		{"POST", "/v1/health", "{}", 501, `"code":"unsupported"`},
		{"GET", "/v1/quality", "", 501, `"code":"unsupported"`},
		{"POST", "/v1/speedtest", "", 501, `"code":"unsupported"`},
		{"PATCH", "/v1/prefs", `{"on":false,"kill_switch":"off"}`, 501, "set protect.kill_switch in the configuration file"},
		{"PATCH", "/v1/prefs", `{"lan":false}`, 501, "set protect.lan in the configuration file"},
		{"PATCH", "/v1/prefs", `{"udp":"block"}`, 501, "set protect.udp in the configuration file"},
		{"PATCH", "/v1/prefs", `{"filter":{"enabled":true}}`, 501, `"filter is not in this version"`},
		// What the API does not have.
		{"GET", "/", "", 404, `"code":"not_found"`},
		{"GET", "/v1/status/", "", 404, `"code":"not_found"`},
		{"GET", "/v1//status", "", 404, `"code":"not_found"`},
		{"GET", "/v1/x/../status", "", 404, `"code":"not_found"`},
		{"GET", "/v1/%73tatus", "", 404, `"code":"not_found"`},
		{"HEAD", "/v1/status", "", 405, ""},
		{"POST", "/v1/status", "", 405, "takes GET"},
		{"TRACE", "/v1/prefs", "", 405, "takes PATCH"},
		// What a call does not take.
		{"GET", "/v1/status?x=1", "", 400, "query parameter"},
		{"GET", "/v1/status?%zz", "", 400, "query"},
		{"GET", "/v1/status", "{}", 400, "no body"},
		{"PATCH", "/v1/prefs", `{"on":true,"path":"/etc/shadow"}`, 400, `unknown field`},
		{"PATCH", "/v1/prefs", `{"on":"yes"}`, 400, "not the JSON"},
		{"PATCH", "/v1/prefs", `{"on":true} {"on":false}`, 400, "after the JSON value"},
		{"PATCH", "/v1/prefs", `{"on":true}]`, 400, "not the JSON"},
		{"PATCH", "/v1/prefs", `{"on":`, 400, "not the JSON"},
		{"PATCH", "/v1/prefs", strings.Repeat("[", 50000), 400, "not the JSON"},
		{"PATCH", "/v1/prefs", `{"upstream":"` + strings.Repeat("a", maxBodyBytes) + `"}`, 400, "64 KiB"},
		{"PATCH", "/v1/prefs", `{}` + strings.Repeat(" ", maxBodyBytes), 400, "64 KiB"},
	} {
		resp, text := call(t, path, tc.method, tc.target, tc.body, nil)
		if resp.StatusCode != tc.code || !strings.Contains(text, tc.want) {
			t.Errorf("%s %s %.40s: %d %.200s; want %d …%s…", tc.method, tc.target, tc.body, resp.StatusCode, text, tc.code, tc.want)
		}
		if resp.StatusCode >= 400 && tc.method != "HEAD" {
			var e api.Error
			if err := json.Unmarshal([]byte(text), &e); err != nil || e.Code == "" || e.Message == "" || !strings.Contains(text, `"hint":`) {
				t.Errorf("%s %s: the error is not an api.Error: %s", tc.method, tc.target, text)
			}
			if e.Hint == "" && e.Code == api.ErrBadRequest {
				t.Errorf("%s %s: no hint: %s", tc.method, tc.target, text)
			}
		}
	}
	if b.shutdown != 2 || len(b.killed) != 2 {
		t.Errorf("shutdown %d times, killed %v", b.shutdown, b.killed)
	}
	if got := len(b.prefs); got != 4 {
		t.Errorf("SetPrefs was called %d times: a refused body must not reach it", got)
	}
	if p := b.prefs[0]; p.On == nil || !*p.On || p.Upstream == nil || *p.Upstream != "auto" {
		t.Errorf("prefs arrived as %+v", p)
	}
}

func TestContentType(t *testing.T) {
	b := newFake()
	path := start(t, b, adminPeer, nil)
	for ct, code := range map[string]int{"application/json": 200, "application/json; charset=utf-8": 200,
		"": 200, "application/x-www-form-urlencoded": 200, "text/plain": 400, "multipart/form-data": 400} {
		resp, _ := call(t, path, "PATCH", "/v1/prefs", `{}`, func(r *http.Request) { r.Header["Content-Type"] = []string{ct} })
		if resp.StatusCode != code {
			t.Errorf("%q: %d, want %d", ct, resp.StatusCode, code)
		}
	}
}

// TestMetrics checks the form of the text: every sample belongs to a declared
// family, and names cannot break out of a label.
func TestMetrics(t *testing.T) {
	path := start(t, newFake(), adminPeer, nil)
	resp, text := call(t, path, "GET", "/v1/metrics", "", nil)
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Errorf("content type %q", ct)
	}
	for _, want := range []string{`atlantic_state{state="on"} 1`, `atlantic_state{state="off"} 0`,
		`atlantic_upstream_rtt_seconds{upstream="a\"b\\c\nd"} 0.012`, `# TYPE atlantic_flows_total counter`, `# TYPE atlantic_goroutines gauge`, `# TYPE atlantic_heap_live_bytes gauge`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
	family := ""
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); f[0] == "#" {
			family = f[2]
			continue
		}
		if !strings.HasPrefix(line, family) || len(strings.Fields(line)) < 2 {
			t.Errorf("sample outside of its family %s: %s", family, line)
		}
	}
}

func TestPanicIsLoggedNotFatal(t *testing.T) {
	var log bytes.Buffer
	b := newFake()
	s := New(b, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	w := serveOne(s, adminPeer, "PATCH", "/v1/prefs", `{"upstream":"panic"}`)
	if w.Code != 500 || !strings.Contains(log.String(), "on purpose") {
		t.Errorf("%d, log %q", w.Code, log.String())
	}
}

func TestServeEndsOnListenerError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := New(newFake(), Options{}).Serve(t.Context(), ln); err == nil {
		t.Error("Serve on a closed listener returned nil")
	}
}
