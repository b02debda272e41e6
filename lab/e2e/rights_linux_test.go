package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// TestRights: through the service a user reaches no more of this machine than
// without it, unless a rule says so; and two users share no connection.
func TestRights(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	ln, err := l.NS(lab.Client).Listen("tcp", "127.0.0.1:8888")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "secret of ", r.RemoteAddr) })}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	get := func(as []string, url string, args ...string) string {
		t.Helper()
		out, code := inClient(t, l, append(append(as, "curl", "-sS", "--max-time", "8", url), args...)...)
		if code == 28 {
			t.Errorf("%s %v: no end: %s", url, args, out)
		}
		return out
	}
	if out, err := l.Command(lab.Router, "ip", "addr", "add", "169.254.169.254/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cloud, err := l.NS(lab.Router).Listen("tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(cloud) }()
	defer func() { cloud.Close(); <-served }()
	s := start(t, l, "", "--up")
	proxy := s.await(api.On).Proxy
	_, port, _ := strings.Cut(proxy, ":")
	ways := [][]string{{"-x", "http://" + proxy}, {"-x", "http://" + proxy, "-p"}, {"-x", "socks5h://" + proxy}}
	metadata := func(way []string) {
		t.Helper()
		if out := get(asNobody(), "http://169.254.169.254/", way...); strings.Contains(out, "secret") {
			t.Errorf("nobody, metadata %v: %s", way, out)
		}
		if out := get(nil, "http://169.254.169.254/", way...); !strings.Contains(out, "secret") {
			t.Errorf("root, metadata %v: %s", way, out)
		}
	}
	for _, way := range ways {
		metadata(way)
		for _, host := range []string{"127.0.0.1", "localhost", "127.1.2.3", "[::ffff:127.0.0.1]", "0.0.0.0"} {
			if out := get(asNobody(), "http://"+host+":8888/", way...); strings.Contains(out, "secret") {
				t.Errorf("nobody, %s %v: %s", host, way, out)
			}
			get(asNobody(), "http://"+host+":"+port+"/", way...)
			get(nil, "http://"+host+":"+port+"/", way...)
		}
		if out := get(nil, "http://127.0.0.1:8888/", way...); !strings.Contains(out, "secret") {
			t.Errorf("root, %v: %s", way, out)
		}
	}
	s.stop()

	// Link-local addresses are reached past the TUN, by the app itself, but for
	// this.
	s = start(t, l, "[protect]\nlan = false\n", "--up")
	s.await(api.On)
	metadata(nil)
	s.stop()

	s = start(t, l, "[[rule]]\ncidr = [\"127.0.0.1\"]\nport = [8888]\nvia = \"direct\"\n", "--up")
	s.await(api.On)
	seen := map[string]bool{}
	for i, as := range [][]string{asNobody(), nil, asNobody(), nil} {
		out := get(as, "http://127.0.0.1:8888/", ways[0]...)
		if seen[out] = true; !strings.Contains(out, "secret") || len(seen) != min(i+1, 2) {
			t.Errorf("request %d, with the rule: %s; connections so far: %v", i, out, seen)
		}
	}
}
