package listener

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"testing"
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
