package resolve

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Everything at once: what Pick gives must be whole, and for the race detector
// to look at.
func TestEverythingAtOnce(t *testing.T) {
	var turn atomic.Int64
	list := &List{Name: "l", URL: "u", Fetch: func(context.Context, string, string) (io.ReadCloser, string, bool, error) {
		n := turn.Add(1)
		return io.NopCloser(strings.NewReader(fmt.Sprintf("10.0.0.1:80:u:p\n10.0.1.%d:80:u:p\n", n%250))), "", false, nil
	}}
	for _, p := range policies() {
		retired := make(chan *Endpoint, 1<<16)
		r := newResolver(t, Options{Policy: p, Retired: func(e *Endpoint) {
			select {
			case retired <- e:
			default:
			}
		}, Sources: []Source{{Gateways: gateways(3)}, {Account: oxylabs(t, "per-domain-10m")}, {Account: oneShot(t)}, {List: list}}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		ks := keys(50)
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := range 500 {
					k := ks[(i+w)%len(ks)]
					e, err := r.Pick(k)
					if err != nil {
						continue // all may have been stopped
					}
					if e.Host == "" || e.Port == 0 || e.m.account != nil && !strings.Contains(e.Username, e.Session) {
						t.Errorf("%+v", e)
					}
					r.Begin(e)
					if next, err := r.Next(k, []*Endpoint{e}); err == nil && next.m == e.m && !e.m.eachAnother() {
						t.Errorf("next of %v is %v", e, next)
					}
					r.HedgeAfter(e)
					kind := OutcomeKind((i*7 + w) % int(Canceled+1))
					r.Report(e, Outcome{Kind: kind, Connect: time.Millisecond, Text: "x"})
				}
			})
		}
		wg.Go(func() {
			for i := range 50 {
				_ = r.Refresh(ctx)
				_, _ = r.NewSession(ctx, ks[i%len(ks)], nil)
				_, _, _ = r.List(), r.Sessions(), r.Lists()
				r.NetworkChanged()
				r.rebuild(time.Now().Add(time.Duration(i) * time.Minute))
			}
		})
		wg.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, m := range r.members {
			if n := m.pending.Load(); n != 0 {
				t.Errorf("%s: %d dials left", m.name, n)
			}
		}
		if len(retired) == 0 {
			t.Error("nothing was retired")
		}
	}
}
