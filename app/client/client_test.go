package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve answers on a real unix socket and returns a client of it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return &Client{Socket: filepath.Join(dir, "s")}
}

// TestCalls checks what each method sends, and that it reads the answer.
func TestCalls(t *testing.T) {
	var got, sent string
	answer := ""
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got, sent = r.Method+" "+r.Host+r.URL.String(), string(body)
		if len(body) > 0 && r.Header.Get("Content-Type") != "application/json" {
			got += " without a content type"
		}
		io.WriteString(w, answer)
	})
	ctx, on, name := t.Context(), true, "paris"
	for _, tc := range []struct {
		want, body, answer string
		call               func() (any, error)
		value              any
	}{
		{"GET atlantic/v1/status", "", `{"state":"on"}`, func() (any, error) { return c.Status(ctx) }, api.Status{State: api.On}},
		{"PATCH atlantic/v1/prefs", `{"on":true,"upstream":"paris"}`, `{"state":"starting"}`,
			func() (any, error) { return c.SetPrefs(ctx, api.Prefs{On: &on, Upstream: &name}) }, api.Status{State: api.Starting}},
		{"GET atlantic/v1/upstreams", "", `{"choice":"auto"}`, func() (any, error) { return c.Upstreams(ctx) }, api.Upstreams{Choice: "auto"}},
		{"GET atlantic/v1/session", "", `{"schema":1}`, func() (any, error) { return c.Sessions(ctx) }, api.Sessions{Schema: 1}},
		{"POST atlantic/v1/session/new", `{"domain":"d"}`, `{"id":"x"}`, func() (any, error) { return c.NewSession(ctx, api.NewSession{Domain: "d"}) }, api.MadeSession{Session: api.Session{ID: "x"}}},
		{"GET atlantic/v1/flows", "", `{"schema":1}`, func() (any, error) { return c.Flows(ctx) }, api.FlowList{Schema: 1}},
		{"DELETE atlantic/v1/flows/7", "", `{}`, func() (any, error) { return nil, c.KillFlow(ctx, 7) }, nil},
		{"GET atlantic/v1/why?host=a%26b%3Dc", "", `{"host":"x"}`, func() (any, error) { return c.Why(ctx, "a&b=c") }, api.Why{Host: "x"}},
		{"GET atlantic/v1/config", "", `{"path":"p"}`, func() (any, error) { return c.Config(ctx) }, api.Config{Path: "p"}},
		{"GET atlantic/v1/metrics", "", "a 1\n", func() (any, error) { return c.Metrics(ctx) }, "a 1\n"},
		{"POST atlantic/v1/shutdown", "", `{}`, func() (any, error) { return nil, c.Shutdown(ctx) }, nil},
	} {
		answer = tc.answer
		v, err := tc.call()
		if err != nil || fmt.Sprint(v) != fmt.Sprint(tc.value) {
			t.Errorf("%s: %+v, %v; want %+v", tc.want, v, err, tc.value)
		}
		if got != tc.want || sent != tc.body {
			t.Errorf("sent %s %s; want %s %s", got, sent, tc.want, tc.body)
		}
	}
}

func TestErrors(t *testing.T) {
	ctx := t.Context()
	var code int
	var answer string
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, answer) })

	code, answer = 403, `{"code":"permission","message":"no","hint":"sudo"}`
	var e *api.Error
	if _, err := c.Flows(ctx); !errors.As(err, &e) || *e != (api.Error{Code: api.ErrPermission, Message: "no", Hint: "sudo"}) {
		t.Errorf("refused: %v", err)
	}
	if err := c.Watch(ctx, func(api.Event) error { return nil }); !errors.As(err, &e) || e.Code != api.ErrPermission {
		t.Errorf("refused watch: %v", err)
	}
	for _, answer = range []string{"<html>hello", "{}", "", strings.Repeat("x", 1<<20)} {
		code = 500
		if _, err := c.Status(ctx); !errors.As(err, &e) || e.Code != api.ErrProtocol {
			t.Errorf("%.10q: %v", answer, err)
		}
	}
	code, answer = 200, "<html>"
	if _, err := c.Status(ctx); err == nil {
		t.Error("HTML was taken for a status")
	}
}

func TestAbsent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if _, err := (&Client{Socket: path}).Status(t.Context()); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), path) {
		t.Errorf("no socket: %v", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close() // the file of a service that has died stays
	if _, err := (&Client{Socket: path}).Status(t.Context()); !errors.Is(err, ErrAbsent) {
		t.Errorf("dead socket: %v", err)
	}
}

// TestForeignServer is IA-04: nothing is said to somebody else's server.
func TestForeignServer(t *testing.T) {
	c := &Client{Socket: "/x", Dial: func(_ context.Context, path string) (net.Conn, error) {
		if path != "/x" {
			t.Errorf("dials %q", path)
		}
		return nil, &localsock.ForeignServerError{Path: path, UID: 1001, Name: "mallory"}
	}}
	if _, err := c.Status(t.Context()); !errors.Is(err, localsock.ErrForeignServer) {
		t.Errorf("got %v", err)
	}
	c.Dial = func(context.Context, string) (net.Conn, error) { return nil, os.ErrPermission }
	var e *api.Error
	if _, err := c.Status(t.Context()); !errors.As(err, &e) || e.Code != api.ErrPermission || e.Hint == "" {
		t.Errorf("no permission: %v", err)
	}
}

func TestWatch(t *testing.T) {
	more := make(chan struct{})
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		enc := json.NewEncoder(w)
		enc.Encode(api.Event{Type: "status", Status: &api.Status{State: api.Off}})
		w.(http.Flusher).Flush()
		select {
		case <-more:
			enc.Encode(api.Event{Type: "status", Status: &api.Status{State: api.On}})
		case <-r.Context().Done():
		}
	})
	var states []api.State
	see := func(ev api.Event) error {
		states = append(states, ev.Status.State)
		if len(states) == 1 {
			close(more)
		}
		return nil
	}
	if err := c.Watch(t.Context(), see); err != io.EOF || fmt.Sprint(states) != "[off on]" {
		t.Errorf("%v, %v", states, err)
	}
	stop := errors.New("enough")
	more = make(chan struct{})
	if err := c.Watch(t.Context(), func(api.Event) error { return stop }); err != stop {
		t.Errorf("fn's error came back as %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Watch(ctx, func(api.Event) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzWatch: whatever the other end sends, Watch ends without a panic and holds
// no more than one event.
func FuzzWatch(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\n\r\n{\"type\":\"status\",\"status\":{}}\n{}\n")
	f.Add("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n")
	f.Add("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\n{}")
	f.Add("SSH-2.0-OpenSSH\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		c := &Client{Dial: func(context.Context, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { // ends with near, which Watch closes
				defer far.Close()
				go io.Copy(io.Discard, far)
				io.WriteString(far, answer)
			}()
			return near, nil
		}}
		if err := c.Watch(t.Context(), func(api.Event) error { return nil }); err == nil {
			t.Error("Watch returned nil")
		}
	})
}
