package engine

import (
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// Without the kill switch an upstream that is gone does not hold traffic back.
func TestKillSwitchOff(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(p.url())
	cfg.Protect.KillSwitch = "off"
	b := newBench(t, cfg)
	if err := b.prefs(t, api.Prefs{On: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	b.waitFor(t, api.On)
	p.l.Close()
	u := b.ups.current()
	err := u.Check(t.Context())
	if err == nil {
		t.Fatal("a closed port answers")
	}
	for range 3 {
		b.observe(u, err)
		time.Sleep(50 * time.Millisecond)
	}
	if st := b.Status(); st.State != api.On || b.held.Load() {
		t.Errorf("state %s, held %v", st.State, b.held.Load())
	}
}
