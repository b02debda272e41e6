package resolve

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestRateLimitBacksOffFurtherEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Failover, 1)
		running(t, r)
		e := endpoints(r)[0]
		var last time.Duration
		for i := range 5 {
			report(r, e, Outcome{Kind: RateLimited, Status: 429})
			_, err := r.Pick(Key{})
			var u *Unavailable
			if !errors.As(err, &u) || u.Cause != RateLimited {
				t.Fatal(err)
			}
			wait := time.Until(u.Until)
			if full := rateFirst << i; wait < full/2 || wait > full {
				t.Errorf("pause %d is %v", i, wait)
			}
			last = wait
			time.Sleep(wait + debounce)
			synctest.Wait()
			report(r, mustPick(t, r, Key{}), Outcome{Kind: Success})
		}
		time.Sleep(rateForget + time.Second)
		report(r, e, Outcome{Kind: Success})
		report(r, e, Outcome{Kind: RateLimited})
		_, err := r.Pick(Key{})
		var u *Unavailable
		if !errors.As(err, &u) || time.Until(u.Until) > min(rateFirst, last) {
			t.Error("it does not forget:", err)
		}
	})
}

func TestLatencyMindsDialsUnderWay(t *testing.T) {
	now := time.Now()
	var h health
	h.record(now, closed, Outcome{Connect: 30 * time.Millisecond}, numbered())
	if idle, busy := h.score(now, 0), h.score(now, 64); busy < 2*idle {
		t.Error(idle, busy)
	}
}

func TestHedgeAfterIsThe95thPercentile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Latency, 1)
		e := endpoints(r)[0]
		if d := r.HedgeAfter(e); d != hedgeDefault {
			t.Error("unknown:", d)
		}
		feed := func(n int, d time.Duration) {
			for range n {
				report(r, e, Outcome{Kind: Success, Connect: d})
			}
		}
		feed(93, 100*time.Millisecond)
		feed(7, 400*time.Millisecond)
		if d := r.HedgeAfter(e); d < 400*time.Millisecond || d > 500*time.Millisecond {
			t.Error("p95 of 7 % at 400 ms:", d)
		}
		time.Sleep(10 * connectHalfLife) // all that is forgotten
		feed(40, 2*time.Millisecond)
		if d := r.HedgeAfter(e); d != hedgeMin {
			t.Error("2 ms:", d)
		}
		feed(400, time.Minute)
		if d := r.HedgeAfter(e); d != hedgeMax {
			t.Error("1 min:", d)
		}
		if d := r.HedgeAfter(&Endpoint{}); d != hedgeDefault {
			t.Error("an endpoint of somebody else:", d)
		}
	})
}

func TestProbeMeasuresAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		var probes atomic.Int64
		down.Store(true)
		r := newResolver(t, Options{Policy: Latency, Sources: []Source{{Gateways: gateways(3)}}, Rand: numbered(),
			Probe: func(_ context.Context, e *Endpoint) (time.Duration, error) {
				probes.Add(1)
				switch {
				case e.Name == "g1" && down.Load():
					return 0, errors.New("no answer")
				case e.Name == "g2":
					return 10 * time.Millisecond, nil
				}
				return 50 * time.Millisecond, nil
			}})
		running(t, r)
		time.Sleep(time.Second)
		synctest.Wait()
		if e := mustPick(t, r, Key{}); e.Name != "g2" {
			t.Error("not the one measured best:", e)
		}
		g1 := endpoints(r)[1]
		for range 3 {
			report(r, g1, Outcome{Kind: Timeout})
		}
		time.Sleep(10 * time.Second)
		if g1.m.gate.Load() != open {
			t.Error("a probe that failed has let flows in")
		}
		down.Store(false)
		time.Sleep(time.Minute)
		if g1.m.gate.Load() != closed {
			t.Error("a probe that succeeded has not")
		}
		n := probes.Load()
		time.Sleep(10 * probeEvery)
		if more := probes.Load() - n; more < 3*9 || more > 3*11 {
			t.Errorf("%d probes in 50 minutes of 3 idle gateways", more)
		}
	})
}
