package apiserver

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/internal/fair"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// serveOne makes one call without a network.
func serveOne(s *Server, peer localsock.Peer, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = Host
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	} else {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
	return w
}

// publicCalls is the policy of the local API, written down a second
// time: whoever opens a call to everybody has to say so here too.
var publicCalls = []string{"GET /v1/status"}

// TestAccessMatrix is IA-01: every call times every kind of caller, generated
// from the table.
func TestAccessMatrix(t *testing.T) {
	peers := map[string]localsock.Peer{
		"root":                  adminPeer,
		"member of atlantic":    {UID: 1000, Known: true, Admin: true, Name: "alice"},
		"another user":          guestPeer,
		"nobody":                {UID: 65534, Known: true, Name: "nobody"},
		"unknown":               {},
		"root of a user ns":     {UID: 100000, Known: true},
		"admin without a name ": {Known: true, Admin: true},
	}
	public := map[string]bool{}
	for _, c := range publicCalls {
		public[c] = true
	}
	seen := 0
	for _, r := range routes() {
		name := r.method + " " + r.path
		if r.access != everybody && r.access != admins {
			t.Errorf("%s is not classified: say in routes who may call it", name)
			continue
		}
		if (r.access == everybody) != public[name] {
			t.Errorf("%s: access %d disagrees with publicCalls", name, r.access)
		}
		seen++
		for who, peer := range peers {
			b := newFake()
			t.Run(name+" by "+who, func(t *testing.T) {
				socket := start(t, b, peer, nil)
				target := strings.Replace(r.path, "{id}", "7", 1)
				if r.query != "" {
					target += "?" + r.query + "=example.com"
				}
				body := ""
				if r.body {
					body = "{}"
				}
				resp, text := call(t, socket, r.method, target, body, nil)
				if may := peer.Admin || public[name]; may != (resp.StatusCode < 400) {
					t.Errorf("answered %d %s", resp.StatusCode, text)
				} else if !may {
					if resp.StatusCode != 403 || !strings.Contains(text, `"hint":"`+localsock.MayWrite()) {
						t.Errorf("refused with %d %s", resp.StatusCode, text)
					}
					if len(b.prefs)+len(b.killed)+len(b.hosts)+b.shutdown != 0 {
						t.Error("a refused call reached the backend")
					}
				}
			})
		}
	}
	if seen < 10 {
		t.Errorf("only %d calls were tried", seen)
	}
}

// TestUnclassifiedIsClosed: forgetting access in the table closes a call, even
// to root.
func TestUnclassifiedIsClosed(t *testing.T) {
	if err := authorize(adminPeer, route{method: "GET", path: "/v1/new"}); err == nil {
		t.Error("a route without access is open to root")
	}
}

// TestPeerUnknown: a peer whom the kernel does not tell of is nobody.
func TestPeerUnknown(t *testing.T) {
	socket := start(t, newFake(), adminPeer, nil)
	if resp, _ := call(t, socket, "GET", "/v1/config", "", nil); resp.StatusCode != 200 {
		t.Errorf("known: %d", resp.StatusCode)
	}
	socket = start(t, newFake(), adminPeer, errors.New("no credentials"))
	if resp, _ := call(t, socket, "GET", "/v1/config", "", nil); resp.StatusCode != 403 {
		t.Errorf("unknown: %d", resp.StatusCode)
	}
}

// TestBrowsersAreRefused is WB-01 and WB-02 as far as they reach the socket.
func TestBrowsersAreRefused(t *testing.T) {
	b := newFake()
	socket := start(t, b, adminPeer, nil)
	for name, edit := range map[string]func(*http.Request){
		"origin":         func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
		"null origin":    func(r *http.Request) { r.Header.Set("Origin", "null") },
		"empty origin":   func(r *http.Request) { r.Header["Origin"] = []string{""} },
		"own origin":     func(r *http.Request) { r.Header.Set("Origin", "http://atlantic") },
		"referer":        func(r *http.Request) { r.Header.Set("Referer", "http://atlantic/") },
		"fetch site":     func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") },
		"evil host":      func(r *http.Request) { r.Host = "evil.com" },
		"localhost:8080": func(r *http.Request) { r.Host = "localhost:8080" },
		"localhost.evil": func(r *http.Request) { r.Host = "localhost.evil" },
		"loopback":       func(r *http.Request) { r.Host = "127.0.0.1" },
		"subdomain":      func(r *http.Request) { r.Host = "atlantic.evil.com" },
		"trailing dot":   func(r *http.Request) { r.Host = "atlantic." },
		"port":           func(r *http.Request) { r.Host = "atlantic:80" },
	} {
		for _, c := range []struct{ method, target, body string }{{"GET", "/v1/status", ""}, {"PATCH", "/v1/prefs", `{"on":false}`}} {
			if resp, text := call(t, socket, c.method, c.target, c.body, edit); resp.StatusCode != 403 {
				t.Errorf("%s: %s %s: %d %s", name, c.method, c.target, resp.StatusCode, text)
			}
		}
	}
	if len(b.prefs) != 0 {
		t.Error("a browser's request reached the backend")
	}
}

// raw sends text as it is and returns the answer's first line.
func raw(t *testing.T, socket, text string) string {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Second))
	io.WriteString(c, text)
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line)
}

func TestRawRequests(t *testing.T) {
	socket := start(t, newFake(), adminPeer, nil)
	for text, want := range map[string]string{
		"GET /v1/status HTTP/1.1\r\nHost: atlantic\r\n\r\n":                   "200",
		"GET /v1/status HTTP/1.1\r\nHost:\r\n\r\n":                            "200",
		"GET /v1/status HTTP/1.0\r\n\r\n":                                     "200",
		"GET /v1/status HTTP/1.1\r\n\r\n":                                     "400", // RFC 9112 3.2
		"GET /v1/status HTTP/1.1\r\nHost: atlantic\r\nHost: evil\r\n\r\n":     "400",
		"GET http://evil/v1/status HTTP/1.1\r\nHost: atlantic\r\n\r\n":        "403",
		"OPTIONS * HTTP/1.1\r\nHost: atlantic\r\n\r\n":                        "404",
		"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n":                 "403",
		"GET /v1/status HTTP/1.1\r\nHost: atlantic\r\nA: " + big + "\r\n\r\n": "431",
		"\x00\x01\x02\r\n\r\n":                                                "400",
	} {
		if line := raw(t, socket, text); !strings.Contains(line, " "+want+" ") {
			t.Errorf("%.60q: %q, want %s", text, line, want)
		}
	}
}

var big = strings.Repeat("a", 64<<10)

// TestNobodyCanLockOut: whoever opens more connections than there are places
// loses his own, and neither another guest, nor another administrator, nor
// root waits for one.
func TestNobodyCanLockOut(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	peers := make(chan localsock.Peer, 1)
	l := newListener(inner, func(net.Conn) (localsock.Peer, error) { return <-peers, nil }, slog.New(slog.DiscardHandler))
	const admins = 128 // maxConns would take more files than some machines give
	l.admins = fair.New[int](admins)
	connect := func(p localsock.Peer) (client, server net.Conn) {
		t.Helper()
		client, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		peers <- p
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		return client, server
	}
	open := func(c net.Conn) bool { // a write to a connection that the server has closed fails sooner or later
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	for _, tc := range []struct {
		name         string
		greedy, late localsock.Peer
		most         int
	}{
		{"guests", localsock.Peer{Known: true, UID: 1001}, localsock.Peer{Known: true, UID: 1002}, maxGuestConns},
		{"administrators", localsock.Peer{Known: true, UID: 1003, Admin: true}, localsock.Peer{Known: true, UID: 1004, Admin: true}, admins},
		{"root", localsock.Peer{Known: true, UID: 1003, Admin: true}, localsock.Peer{Known: true, Admin: true}, admins},
	} {
		t.Run(tc.name, func(t *testing.T) {
			client, server := connect(tc.late)
			var first, last net.Conn
			for i := range tc.most + 5 {
				c, s := connect(tc.greedy)
				if i == 0 {
					first = c
				}
				last = c
				t.Cleanup(func() { s.Close() })
			}
			late, _ := connect(tc.late)
			if open(first) {
				t.Error("who took all places kept the first of them")
			}
			if !open(client) || !open(late) || !open(last) {
				t.Error("others lost a connection, or who took all places lost the last of them")
			}
			server.Close()
			server.Close() // leaves once
		})
	}
}

// FuzzAPI is FZ-08: whatever a caller writes, each answer is JSON of ours, no
// call panics, and only a well-formed PATCH reaches SetPrefs.
func FuzzAPI(f *testing.F) {
	for _, seed := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: atlantic\r\n\r\n",
		"PATCH /v1/prefs HTTP/1.1\r\nHost: atlantic\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{\"on\":true}",
		"PATCH /v1/prefs HTTP/1.1\r\nHost: atlantic\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"PATCH /v1/prefs HTTP/1.1\r\nHost: atlantic\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull",
		"GET /v1/why?host=example.com HTTP/1.1\r\nHost: atlantic\r\n\r\n",
		"GET /v1/why?host=%00;&&== HTTP/1.1\r\nHost: atlantic\r\n\r\n",
		"DELETE /v1/flows/18446744073709551616 HTTP/1.1\r\nHost: atlantic\r\n\r\n",
		"POST /v1/shutdown HTTP/1.1\r\nHost:\r\nOrigin: null\r\n\r\n",
		"GET /v1/metrics HTTP/1.0\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: atlantic\r\n\r\n",
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, input []byte, admin bool) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(input))))
		if err != nil || strings.HasPrefix(r.URL.Path, "/v1/watch") {
			return
		}
		b := newFake()
		s := New(b, Options{})
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r.WithContext(context.WithValue(t.Context(), peerKey{}, localsock.Peer{Admin: admin})))
		if w.Code == 500 && !strings.Contains(w.Body.String(), "it broke") {
			if len(b.prefs) == 0 || b.prefs[0].Upstream == nil || *b.prefs[0].Upstream != "panic" {
				t.Fatalf("internal error: %s", w.Body)
			}
		}
		if changed := len(b.prefs)+len(b.killed)+b.shutdown > 0; changed && (!admin || r.Method == "GET") {
			t.Fatalf("%s %s changed something for admin=%v", r.Method, r.URL, admin)
		}
		if w.Code == 200 && !admin && r.URL.Path != "/v1/status" {
			t.Fatalf("%s %s was answered to a guest", r.Method, r.URL)
		}
		if w.Body.Len() > 64<<10 {
			t.Fatalf("an answer of %d bytes", w.Body.Len())
		}
	})
}

var _ Backend = (*fakeBackend)(nil)

// curl and other clients of unix sockets name a host of their own.
func TestUsualHostsAreWelcome(t *testing.T) {
	for _, host := range []string{"", Host, "localhost", "unix"} {
		r := httptest.NewRequest("GET", "/v1/status", nil)
		r.Host = host
		if err := refuseBrowser(r); err != nil {
			t.Errorf("%q: %v", host, err)
		}
	}
}
