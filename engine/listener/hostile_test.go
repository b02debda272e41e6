package listener

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHostileHeads: a head as long as one may be takes its length to read, not
// the square of that.
func TestHostileHeads(t *testing.T) {
	n := maxAnswerHead / 8
	for name, fields := range map[string]string{
		"options": "Connection: " + strings.Repeat("x,", n) + "\n" + strings.Repeat("y:\n", n),
		"folds":   "X:\n" + strings.Repeat(" \n", n) + strings.Repeat(" a\n", n),
	} {
		var least time.Duration
		for range 3 { // others may have the processor for a while
			r, begin := new(response), time.Now()
			r.raw = []byte("HTTP/1.1 200 OK\n" + fields)
			if err := r.understand(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); least == 0 || took < least {
				least = took
			}
		}
		if least > 500*time.Millisecond {
			t.Errorf("%s: %v", name, least)
		}
	}
}

// TestFoldsAreCleaned: what is folded onto a field is as clean as the field.
func TestFoldsAreCleaned(t *testing.T) {
	a := dialT(t, start(t, &direct{}))
	host := sloppyOrigin(t, "HTTP/1.1 200 OK\r\nX: a\r\n b\rSet-Cookie: c\x00d\r\nContent-Length: 0\r\n\r\n")
	a.say("GET http://%s/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", host)
	got, err := io.ReadAll(a.r)
	if want := "\r\nX: a   b Set-Cookie: c d\r\n"; err != nil || !strings.Contains(string(got), want) {
		t.Errorf("%q, %v; want %q in it", got, err, want)
	}
}

// TestForgetBound: a connection that is bound to an app's is forgotten too, and
// one app connection cannot hold any number of them.
func TestForgetBound(t *testing.T) {
	d := &direct{}
	l, err := Listen(Options{Address: "127.0.0.1:0", Handler: d, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	defer func() { cancel(); <-ended }()

	port := origin(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", "NTLM")
		io.WriteString(w, "ok")
	})
	a := dialT(t, l.Addr().String())
	get := func(name string, flows int) {
		t.Helper()
		a.say("GET http://%s:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", name, port)
		if _, body, err := a.response(); err != nil || body != "ok" || d.count() != flows {
			t.Errorf("%q, %v, %d flows, want %d", body, err, d.count(), flows)
		}
	}
	get("a.test", 1)
	get("a.test", 1)
	l.Forget()
	get("a.test", 2)
	for i := range 2 * maxBound {
		get(fmt.Sprint(i, ".test"), 3+i)
	}
	again := d.count()
	for i := range 2 * maxBound {
		a.say("GET http://%d.test:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", i, port)
		if _, _, err := a.response(); err != nil {
			t.Error(err)
		}
	}
	if n := d.count() - again; n < maxBound {
		t.Errorf("%d of %d had been let go", n, 2*maxBound)
	}
}
