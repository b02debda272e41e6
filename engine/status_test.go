package engine

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// A service that nothing can reach says so.
func TestNothingIsCarried(t *testing.T) {
	b := newBench(t, testConfig(""), func(o *Options) { o.NoTUN = true })
	b.prefs(t, api.Prefs{On: ptr(true)})
	if st := b.waitFor(t, api.On); len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "nothing is carried") {
		t.Errorf("warnings: %q", st.Warnings)
	}
}

// An HTTP proxy that takes connections and answers none is found out by flows;
// Check, which cannot tell it from a slow target, makes nothing good.
func TestSilentProxyIsTold(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(p.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	p.silence()
	u := b.ups.current()
	for range manyFailures {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if c, err := u.DialStream(ctx, flow.Target{Name: "example.com", Port: 443}, nil); err == nil {
			c.Close()
			t.Error("a silent proxy carries flows")
		}
		cancel()
	}
	if err := u.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if st := b.Status(); len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "the last 3 connections have failed: ") ||
		!strings.HasSuffix(st.Warnings[0], ")") { // the hint
		t.Errorf("%s, warnings %q", st.State, st.Warnings)
	}
	p.speak(replyOK)
	if _, err := u.DialStream(t.Context(), flow.Target{Name: "example.com", Port: 443}, nil); err != nil {
		t.Fatal(err)
	}
	if st := b.Status(); len(st.Warnings) != 0 {
		t.Errorf("warnings: %q", st.Warnings)
	}
}
