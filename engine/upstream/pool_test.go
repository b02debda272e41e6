package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakes makes connections to nothing, which take setup to be made and end
// after limit.
type fakes struct {
	setup, limit time.Duration
	restarted    atomic.Int64 // Unix ns; ends what was made before
	refuse       atomic.Bool
	made, tries  atomic.Int32
	busy, most   atomic.Int32
}

func (f *fakes) open(ctx context.Context) (*warm, error) {
	f.tries.Add(1)
	f.most.Store(max(f.most.Load(), f.busy.Add(1)))
	defer f.busy.Add(-1)
	select {
	case <-time.After(f.setup):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.refuse.Load() {
		return nil, fault(Refused, errors.New("refused"), "")
	}
	f.made.Add(1)
	born := time.Now()
	a, b := net.Pipe()
	go b.Close()
	return &warm{
		conn: pipe{a}, since: born, dial: f.setup, spread: rand.Float64(),
		isDead: func() bool {
			return f.limit > 0 && time.Since(born) >= f.limit || born.UnixNano() < f.restarted.Load()
		},
	}, nil
}

type pipe struct{ net.Conn }

func (pipe) CloseRead() error  { return nil }
func (pipe) CloseWrite() error { return nil }

// browse takes connections as a browser does, in bursts, until end; it says
// how many were taken and how many of them were waited for.
func browse(t *testing.T, p *pool, end time.Duration, think func() time.Duration) (flows, waited int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for begin := time.Now(); time.Since(begin) < end; time.Sleep(think()) {
		for range 6 + rand.IntN(25) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				w, err := p.take(t.Context(), false)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				flows++
				if !w.pooled {
					waited++
				}
				mu.Unlock()
				w.abort()
			}()
			time.Sleep(time.Duration(rand.ExpFloat64() * float64(15*time.Millisecond)))
		}
	}
	wg.Wait()
	return flows, waited
}

// TestBrowsing: who browses does not wait for handshakes, and nobody else
// causes any.
func TestBrowsing(t *testing.T) {
	for _, setup := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 300 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakes{setup: setup, limit: 30 * time.Second}
			stats := &counters{}
			p := newPool(0, stats, f.open)
			defer p.close()
			think := func() time.Duration { return time.Second + rand.N(7*time.Second) }
			var flows, waited int
			const sessions = 10 // of a minute each, all cold
			for range sessions {
				n, w := browse(t, p, time.Minute, think)
				flows, waited = flows+n, waited+w
				time.Sleep(forgetAfter + longestIdle + time.Minute)
				p.mu.Lock()
				if len(p.idle) != 0 || p.tending || stats.warm.Load() != 0 {
					t.Fatalf("%d connections are kept for nobody", len(p.idle))
				}
				p.mu.Unlock()
			}
			cold := 1 - float64(waited)/float64(flows)
			browse(t, p, time.Minute, think)
			before := f.made.Load()
			flows, waited = browse(t, p, 15*time.Minute, think)
			steady := 1 - float64(waited)/float64(flows)
			t.Logf("set-up %v: %.4f from cold, %.4f steady of %d flows, %d connections made", setup, cold, steady, flows, f.made.Load()-before)
			if cold < 0.95 && setup < 100*time.Millisecond || cold < 0.8 || steady < 0.99 {
				t.Errorf("flows that did not wait: %.4f from cold, %.4f steady", cold, steady)
			}
			if f.most.Load() > 64 {
				t.Errorf("%d dials at a time", f.most.Load())
			}
		})
	}
}

// TestIdleLimitLearnt: a proxy that hangs up early costs nobody a dead
// connection, and not many new ones.
func TestIdleLimitLearnt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limit := range []time.Duration{time.Second, 10 * time.Second} {
			f := &fakes{setup: 20 * time.Millisecond, limit: limit}
			p := newPool(0, &counters{}, f.open)
			for range 300 {
				if w, err := p.take(t.Context(), false); err != nil || w.isDead() {
					t.Fatalf("limit %v: %v, %v", limit, w, err)
				}
				time.Sleep(time.Second)
			}
			if life := p.limit.life(); life >= limit || life < limit/2 {
				t.Errorf("limit %v is taken for %v", limit, life)
			}
			if n := f.made.Load(); n > 300*6 {
				t.Errorf("limit %v: %d connections were made in 300 s", limit, n)
			}
			p.close()
		}
	})
}

// TestRefusingProxy: a proxy that refuses is not stormed, whoever asks is told
// so, and when it is back it is used at once.
func TestRefusingProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{setup: 10 * time.Millisecond}
		p := newPool(0, &counters{}, f.open)
		defer p.close()
		f.refuse.Store(true)
		const flows = 600
		for range flows {
			if _, err := p.take(t.Context(), false); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := f.tries.Load(); n > flows+200 {
			t.Errorf("%d dials for %d flows", n, flows)
		}
		f.refuse.Store(false)
		if _, err := p.take(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if w, err := p.take(t.Context(), false); err != nil || !w.pooled {
			t.Errorf("not refilled: %v", err)
		}
	})
}

// TestPoolEmptyFull covers what does not happen every day.
func TestPoolEmptyFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{setup: 100 * time.Millisecond}
		stats := &counters{}
		p := newPool(4, stats, f.open)
		take := func() *warm {
			w, err := p.take(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		// A flow that comes while a connection is being made gets that one.
		go func() { _, _ = p.take(context.Background(), false) }()
		time.Sleep(90 * time.Millisecond)
		begin := time.Now()
		if w := take(); w.pooled || time.Since(begin) > 20*time.Millisecond {
			t.Errorf("waited for %v", time.Since(begin))
		}
		time.Sleep(time.Second)
		if stats.warm.Load() != 4 {
			t.Errorf("%d are kept of at most 4", stats.warm.Load())
		}
		// Who gives up leaves its connection to the others.
		for range 4 {
			take()
		}
		made := f.made.Load()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := p.take(ctx, true); err == nil {
			t.Error("no time, but a connection")
		}
		time.Sleep(time.Second)
		if stats.warm.Load() != 4 || f.made.Load() > made+5 {
			t.Errorf("%d kept, %d made", stats.warm.Load(), f.made.Load()-made)
		}
		// A new network: nothing of the old one.
		old := p.idle[0]
		p.flush(true)
		time.Sleep(time.Second)
		if w := take(); w == old || !w.pooled || w.epoch != 1 {
			t.Error("of the old network")
		}
		// Nobody wants any: nothing is made ahead.
		p.flush(false)
		time.Sleep(time.Second) // dials under way end
		was := f.made.Load()
		time.Sleep(2 * time.Minute)
		if stats.warm.Load() != 0 || f.made.Load() != was {
			t.Errorf("while it rests, %d kept, %d made", stats.warm.Load(), f.made.Load()-was)
		}
		p.close()
		p.close()
		if _, err := p.take(t.Context(), false); err == nil || stats.warm.Load() != 0 {
			t.Error("closed, and still gives")
		}
		none := newPool(-1, stats, f.open)
		for range 3 {
			if w, err := none.take(t.Context(), false); err != nil || w.pooled {
				t.Errorf("a pool of none: %v", err)
			}
			time.Sleep(time.Second)
		}
		none.close()
	})
}

// TestRestartIsNoLimit: connections of any age that end together say nothing
// about how long they may be idle.
func TestRestartIsNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{setup: 10 * time.Millisecond}
		p := newPool(0, &counters{}, f.open)
		defer p.close()
		for range 5 {
			for range 8 {
				if w, err := p.take(t.Context(), false); err != nil || w.isDead() {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Second)
			}
			f.restarted.Store(time.Now().UnixNano())
			time.Sleep(2 * time.Second)
		}
		if p.limit.limit != 0 {
			t.Errorf("taken for a limit of %v", p.limit.limit)
		}
	})
}

func TestDemandIsBounded(t *testing.T) {
	var d demand
	now := time.Unix(1e9, 0)
	if d.stock(now, longestIdle) != 0 {
		t.Error("stock without demand")
	}
	for range 10000 {
		d.note(now)
		now = now.Add(100 * time.Microsecond)
	}
	if n := d.stock(now, longestIdle); n < poolMax || n > 2*poolMax {
		t.Errorf("%d for very many", n)
	}
	if n := d.stock(now, 500*time.Millisecond); n != 2 {
		t.Errorf("%d where they live for half a second", n)
	}
	if a, b := d.stock(now.Add(10*time.Second), longestIdle), d.stock(now.Add(150*time.Second), longestIdle); b >= a {
		t.Errorf("does not fade: %d, %d", a, b)
	}
	if n := d.stock(now.Add(forgetAfter+time.Second), longestIdle); n != 0 {
		t.Errorf("%d long after", n)
	}
}

// TestRush: who opens thousands of connections a second to a proxy next door
// gets what was ready and then makes each himself.
func TestRush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{setup: time.Millisecond / 2}
		p := newPool(0, &counters{}, f.open)
		defer p.close()
		take := func() *warm {
			w, err := p.take(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		const flows = 5000
		for range flows {
			take()
		}
		if n := f.made.Load(); n > flows+poolMax {
			t.Errorf("%d connections for %d flows", n, flows)
		}
		time.Sleep(time.Second)
		take() // the rush is over
		time.Sleep(time.Second)
		if w := take(); !w.pooled {
			t.Error("not warm again")
		}
	})
}

func TestPaceLearns(t *testing.T) {
	var p pace
	if p.patience() != unknownPace {
		t.Error("unknown")
	}
	for range 100 {
		p.add(10 * time.Millisecond)
	}
	if p.patience() != leastPace {
		t.Errorf("fast: %v", p.patience())
	}
	for range 100 {
		p.add(400 * time.Millisecond)
	}
	if d := p.patience(); d != 1200*time.Millisecond {
		t.Errorf("slow: %v", d)
	}
}
