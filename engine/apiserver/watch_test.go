package apiserver

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// watchConn opens a watch over a plain connection and returns it after the
// answer's headers.
func watchConn(t *testing.T, socket string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, "GET /v1/watch HTTP/1.1\r\nHost: atlantic\r\n\r\n")
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("headers: %v", err)
		}
		if line == "\r\n" {
			return c, r
		}
	}
}

// nextEvent reads one event out of the chunked body.
func nextEvent(t *testing.T, r *bufio.Reader) (ev api.Event) {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("event: %v", err)
		}
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &ev); err != nil {
				t.Fatal(err)
			}
			return ev
		}
	}
}

func TestWatch(t *testing.T) {
	b := newFake()
	_, r := watchConn(t, start(t, b, adminPeer, nil))
	first := nextEvent(t, r)
	if first.Type != "status" || first.Status == nil || first.Status.State != api.On {
		t.Fatalf("the first event is %+v", first)
	}
	b.emit(api.Event{Type: "error", Error: &api.Error{Code: api.ErrAuth, Message: "no"}})
	if ev := nextEvent(t, r); ev.Type != "error" || ev.Error.Code != api.ErrAuth {
		t.Errorf("then %+v", ev)
	}
}

// TestWatchThousand: a thousand idle watchers all get the next event, quickly,
// and leave nothing behind (LD-10).
func TestWatchThousand(t *testing.T) {
	const n = 1000
	b := newFake()
	socket := start(t, b, adminPeer, nil)
	readers := make([]*bufio.Reader, n)
	conns := make([]net.Conn, n)
	for i := range readers {
		conns[i], readers[i] = watchConn(t, socket)
		nextEvent(t, readers[i])
	}
	if got := b.watching(); got != n {
		t.Fatalf("%d watchers", got)
	}
	began := time.Now()
	b.emit(api.Event{Type: "status", Status: &api.Status{State: api.Blocked}})
	for _, r := range readers {
		if ev := nextEvent(t, r); ev.Status.State != api.Blocked {
			t.Fatalf("got %+v", ev)
		}
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("an event took %v to reach %d watchers", d, n)
	}
	for _, c := range conns {
		c.Close()
	}
	for deadline := time.Now().Add(5 * time.Second); b.watching() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d watchers are still subscribed after all have left", b.watching())
		}
	}
}

// TestWatchSlow: a watcher that does not read never delays the backend, and
// its stream ends.
func TestWatchSlow(t *testing.T) {
	b := newFake()
	socket := start(t, b, adminPeer, nil)
	_, slow := watchConn(t, socket)
	nextEvent(t, slow)
	ev := api.Event{Type: "error", Error: &api.Error{Message: strings.Repeat("x", 32<<10)}}
	began := time.Now()
	for b.watching() > 0 {
		b.emit(ev)
		if time.Since(began) > 5*time.Second {
			t.Fatal("a watcher that reads nothing was not dropped")
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); io.Copy(io.Discard, slow) }()
	select {
	case <-done:
	case <-time.After(eventTimeout + 3*time.Second):
		t.Error("its connection stays open")
	}
}

// TestWatchOutlivesRequestTimeout: a stream is not cut by the deadline that
// ordinary calls have.
func TestWatchOutlivesRequestTimeout(t *testing.T) {
	b := newFake()
	srv := New(b, Options{PeerOf: func(net.Conn) (localsock.Peer, error) { return adminPeer, nil }})
	srv.timeout = 100 * time.Millisecond
	_, r := watchConn(t, startServer(t, srv))
	nextEvent(t, r)
	time.Sleep(3 * srv.timeout)
	b.emit(api.Event{Type: "error", Error: &api.Error{Message: "late"}})
	if ev := nextEvent(t, r); ev.Error == nil || ev.Error.Message != "late" {
		t.Errorf("got %+v", ev)
	}
}

// TestWatchSeesTheEnd: what a backend says at its end still arrives.
func TestWatchSeesTheEnd(t *testing.T) {
	b := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	srv := New(b, Options{PeerOf: func(net.Conn) (localsock.Peer, error) { return adminPeer, nil }})
	_, r := watchConn(t, startServerUntil(ctx, t, srv))
	nextEvent(t, r)
	cancel()
	time.Sleep(20 * time.Millisecond) // for watchers to be dropped, which they must not be yet
	b.emit(api.Event{Type: "status", Status: &api.Status{State: api.Stopping}})
	b.emit(api.Event{Type: "status", Status: &api.Status{State: api.Off}})
	b.end()
	for _, want := range []api.State{api.Stopping, api.Off} {
		if ev := nextEvent(t, r); ev.Status.State != want {
			t.Errorf("got %s, want %s", ev.Status.State, want)
		}
	}
	if rest, err := io.ReadAll(r); err != nil || strings.Contains(string(rest), "{") {
		t.Errorf("then %q, %v", rest, err)
	}
}
