package engine

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
)

// TestStorm does everything at once, in an order that the seed in the log
// repeats; whatever happened, up then leads to On and down to a machine that is
// as it was, and every caller has had an answer.
func TestStorm(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(one.url())
	cfg.Upstreams = append(cfg.Upstreams, config.Upstream{Name: "two", URL: two.url()})
	cfg.Listen.Proxy = "127.0.0.1:0"
	b := newBench(t, cfg)
	storm := func(worker uint64) {
		r := rand.New(rand.NewPCG(seed, worker))
		replies := []string{replyOK, reply407, "garbage\r\n\r\n"}
		choices := []string{"one", "two", "direct", "auto", "nobody", two.url()}
		for range 60 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			var p api.Prefs
			switch r.IntN(10) {
			case 0, 1:
				p.On = ptr(true)
			case 2:
				p.On = ptr(false)
			case 3, 4:
				p.Upstream = ptr(choices[r.IntN(len(choices))])
			case 5:
				p.On, p.Upstream = ptr(r.IntN(2) == 0), ptr(choices[r.IntN(len(choices))])
			case 6:
				if len(b.host.Opened()) > 0 {
					b.host.BreakTUN()
				}
			case 7:
				u := b.ups.current()
				b.observe(u, u.Check(ctx))
			case 8:
				one.answer(replies[r.IntN(len(replies))])
			case 9:
				c := b.host.Uplink()
				c.Up = r.IntN(2) == 0
				b.host.Change(c)
				if r.IntN(3) == 0 {
					b.host.FailApply(errors.New("not now"))
				}
			}
			if p.On != nil || p.Upstream != nil {
				if _, err := b.SetPrefs(ctx, p); errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("no answer to %+v", p)
				}
			}
			cancel()
			time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
		}
	}
	var wg sync.WaitGroup
	for w := range uint64(3) {
		wg.Go(func() { storm(w) })
	}
	wg.Wait()
	for b.host.Apply(t.Context(), b.host.Current()) != nil { // use up the failures that wait
	}
	one.answer(replyOK)
	until(t, "it obeys", func() bool {
		return b.prefs(t, api.Prefs{Upstream: ptr("one"), On: ptr(true)}) == nil
	})
	st := b.waitFor(t, api.On)
	if cur := b.host.Current(); cur.TUN == "" || b.held.Load() || st.Upstream.Name != "one" || b.host.OpenTUNs() != 1 {
		t.Errorf("On, but %+v, held %v, %d TUNs: %+v", cur, b.held.Load(), b.host.OpenTUNs(), st)
	}
	b.prefs(t, api.Prefs{On: ptr(false)})
	b.waitFor(t, api.Off)
	if cur := b.host.Current(); cur.TUN != "" || b.held.Load() || b.host.OpenTUNs() != 0 {
		t.Errorf("Off, but %+v, held %v, %d TUNs", cur, b.held.Load(), b.host.OpenTUNs())
	}
}
