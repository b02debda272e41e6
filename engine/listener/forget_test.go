package listener

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestForget: no request after Forget goes by a connection from before, whether
// it was idle then or in use.
func TestForget(t *testing.T) {
	d := &direct{}
	l, err := Listen(Options{Address: "127.0.0.1:0", Handler: d, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l.Forget() // before Run there is nothing to forget
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	begun, finish := make(chan bool), make(chan bool)
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- true
			<-finish
		}
		io.WriteString(w, "ok")
	})
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: l.Addr().String()})}
	defer tr.CloseIdleConnections()
	get := func(path string, flows int) {
		t.Helper()
		resp, err := (&http.Client{Transport: tr}).Get("http://origin.test:" + port + path)
		if err != nil {
			t.Error(err)
			return
		}
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ok" {
			t.Errorf("%q, %v", body, err)
		}
		resp.Body.Close()
		if d.count() != flows {
			t.Errorf("%d flows after %s, want %d", d.count(), path, flows)
		}
	}
	get("/", 1)
	get("/", 1)
	l.Forget()
	get("/", 2)
	done := make(chan bool)
	go func() { defer close(done); get("/slow", 2) }()
	<-begun
	l.Forget()
	finish <- true
	<-done
	get("/", 3)
}

// TestAppsShareNothing: requests of one app share a flow, those of two do not.
func TestAppsShareNothing(t *testing.T) {
	d := &direct{}
	var names sync.Map // netip.AddrPort → string
	proxy := startWith(t, Options{Handler: d, App: func(src, dst netip.AddrPort) string {
		name, _ := names.Load(src)
		return fmt.Sprint(name, " on ", dst.Port())
	}})
	port := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	for i, name := range []string{"a", "b", "a", "b", "a"} {
		a := dialT(t, proxy)
		names.Store(flow.AddrPortOf(a.LocalAddr()), name)
		a.say("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", port)
		if _, body, err := a.response(); err != nil || body != "ok" {
			t.Fatal(body, err)
		}
		if d.count() != min(i+1, 2) {
			t.Errorf("%d flows after %d requests", d.count(), i+1)
		}
	}
	for i := range 2 * maxIdleInAll { // a scan of apps does not fill memory
		a := dialT(t, proxy)
		names.Store(flow.AddrPortOf(a.LocalAddr()), fmt.Sprint(i))
		a.say("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", port)
		if _, body, err := a.response(); err != nil || body != "ok" {
			t.Fatal(body, err)
		}
		a.Close()
	}
}

// TestIdleHoldsLittle: an idle connection does not hold what the longest head
// that it has seen took: 1.3 MB each here.
func TestIdleHoldsLittle(t *testing.T) {
	const conns, most = 40, 8 << 20
	proxy := start(t, &direct{})
	port := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // pools keep what they have for one
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	fields := strings.Repeat("a:\n", 16<<10)
	for range conns {
		a := dialT(t, proxy)
		a.say("GET http://origin.test:%s/ HTTP/1.1\r\nHost: x\r\n%s\r\n", port, fields)
		if resp, body, err := a.response(); err != nil || body != "ok" {
			t.Fatal(resp.Status, body, err)
		}
	}
	end := time.Now().Add(10 * time.Second)
	for held := heap() - before; held > most; held = heap() - before {
		if time.Now().After(end) {
			t.Fatalf("%d idle connections hold %d KiB each", conns, held/conns>>10)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
