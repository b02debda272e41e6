package engine

import (
	"cmp"
	"errors"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// What came with a first try that fails is not kept; what was chosen by itself is.
func TestFailedTryTakesItsChoiceBack(t *testing.T) {
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	bad := newFakeProxy(t, "127.0.0.1:0", reply407)
	b := newBench(t, testConfig(one.url()))
	fails := func(p api.Prefs, keeps string) {
		t.Helper()
		if err := b.prefs(t, p); err != nil {
			t.Fatal(err)
		}
		until(t, "it is off", func() bool { st := b.Status(); return st.State == api.Off && st.Code == api.ErrAuth })
		in, err := loadIntent(b.dir)
		if got := b.Upstreams().Choice; err != nil || got != keeps || cmp.Or(in.Upstream, autoName) != keeps {
			t.Errorf("the choice is %q, kept is %q (%v); want %q", got, in.Upstream, err, keeps)
		}
	}
	fails(api.Prefs{On: ptr(true), Upstream: ptr(bad.url())}, autoName)
	b.prefs(t, api.Prefs{Upstream: ptr(two.url())})
	fails(api.Prefs{On: ptr(true), Upstream: ptr(bad.url())}, two.url())
	b.prefs(t, api.Prefs{On: ptr(true)})
	if st := b.waitFor(t, api.On); st.Upstream.Address != two.l.Addr().String() {
		t.Errorf("on by %+v", st.Upstream)
	}
	b.prefs(t, api.Prefs{On: ptr(false)})
	b.waitFor(t, api.Off)
	b.prefs(t, api.Prefs{Upstream: ptr(bad.url())})
	fails(api.Prefs{On: ptr(true)}, bad.url())
}

// What this machine refuses says nothing against the choice.
func TestChoiceOutlivesAFailureOfTheMachine(t *testing.T) {
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(one.url()))
	b.host.FailOpenTUN(errors.New("busy"))
	b.prefs(t, api.Prefs{On: ptr(true), Upstream: ptr(two.url())})
	until(t, "it is off", func() bool { st := b.Status(); return st.State == api.Off && st.Cause != "" })
	b.host.FailOpenTUN(nil)
	b.prefs(t, api.Prefs{On: ptr(true)})
	if st := b.waitFor(t, api.On); st.Upstream.Address != two.l.Addr().String() {
		t.Errorf("on by %+v", st.Upstream)
	}
}
