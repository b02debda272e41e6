package route

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// resting is a handler whose sweeps the test makes itself.
func resting(t testing.TB) *Handler {
	h := handler(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for h.lot.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	return h
}

// kickAll kicks all relays, whether bytes move or not.
func kickAll(h *Handler) {
	h.live.Range(func(_, v any) bool {
		if r := v.(*live).relay.Load(); r != nil {
			r.kick()
		}
		return true
	})
}

func parked(h *Handler) (n int) {
	h.live.Range(func(_, v any) bool {
		if r := v.(*live).relay.Load(); r != nil && r.parked.Load() {
			n++
		}
		return true
	})
	return n
}

func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// restFlow carries one flow and lets it rest.
func restFlow(t testing.TB, h *Handler, target flow.Target) (app *net.TCPConn, done chan struct{}) {
	t.Helper()
	app, in := pair(t)
	done = carry(h, t.Context(), tcpFlow(target), &pending{conn: in})
	talk(t, app)
	before := parked(h)
	until(t, "the flow rests", func() bool { kickAll(h); return parked(h) > before })
	return app, done
}

func talk(t testing.TB, app net.Conn) {
	t.Helper()
	_, _ = app.Write([]byte("hello"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(app, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestRest(t *testing.T) {
	h := resting(t)
	target := flow.TargetOf(serve(t, echo))
	const flows = 50
	var apps []*net.TCPConn
	var ends []chan struct{}
	for range flows {
		app, in := pair(t)
		ends = append(ends, carry(h, t.Context(), tcpFlow(target), &pending{conn: in}))
		talk(t, app)
		apps = append(apps, app)
	}
	busy := runtime.NumGoroutine()
	until(t, "all rest", func() bool { kickAll(h); return parked(h) == flows })
	if n := runtime.NumGoroutine(); n > busy-flows {
		t.Errorf("%d goroutines, %d before the rest", n, busy)
	}
	for i, app := range apps {
		talk(t, app)
		switch i % 3 {
		case 0: // half-close after a rest
			until(t, "rests again", func() bool { kickAll(h); return parked(h) > 0 })
			_, _ = app.Write([]byte("last"))
			_ = app.CloseWrite()
			if rest, err := io.ReadAll(app); string(rest) != "last" || err != nil {
				t.Errorf("%q, %v", rest, err)
			}
		default:
			_ = app.Close()
		}
	}
	for _, end := range ends {
		wait(t, end)
	}
}

func TestRestEnds(t *testing.T) {
	h := resting(t)
	gone := make(chan *net.TCPConn, 1)
	target := flow.TargetOf(serve(t, func(c *net.TCPConn) { gone <- c; echo(c) }))

	app, done := restFlow(t, h, target)
	_ = (<-gone).SetLinger(0)
	for _, f := range h.Flows() {
		h.Kill(f.Flow.ID)
	}
	wait(t, done)
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("killed while it rests: the app sees %v", err)
	}

	app, done = restFlow(t, h, target)
	server := <-gone
	_ = server.SetLinger(0)
	_ = server.Close()
	wait(t, done)
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset while it rests: the app sees %v", err)
	}
}

// One direction that is stuck in a write must not keep the other from moving.
func TestRestBesideStuckReader(t *testing.T) {
	h := resting(t)
	got := make(chan string, 1)
	target := flow.TargetOf(serve(t, func(c *net.TCPConn) {
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = c.Write(make([]byte, 64<<20)) }) // nobody reads it
		b := make([]byte, 4)
		for range 3 {
			_, _ = io.ReadFull(c, b)
			got <- string(b)
		}
		_ = c.SetLinger(0)
		_ = c.Close()
		wg.Wait()
	}))
	app, in := pair(t)
	done := carry(h, t.Context(), tcpFlow(target), &pending{conn: in})
	time.Sleep(100 * time.Millisecond) // the write gets stuck
	for range 3 {
		kickAll(h)
		_, _ = app.Write([]byte("ping"))
		select {
		case s := <-got:
			if s != "ping" {
				t.Errorf("%q", s)
			}
		case <-time.After(8 * time.Second):
			t.Fatal("the direction to the server stands still")
		}
	}
	_ = app.Close()
	wait(t, done)
}

// Kicks at any moment lose nothing.
func TestRestIsByteExact(t *testing.T) {
	h := resting(t)
	target := flow.TargetOf(serve(t, echo))
	stop := make(chan struct{})
	var kicker sync.WaitGroup
	kicker.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				kickAll(h)
			}
		}
	})
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			app, in := pair(t)
			end := carry(h, t.Context(), tcpFlow(target), &pending{conn: in})
			rng := rand.New(rand.NewPCG(seed, 1))
			want, have := sha256.New(), sha256.New()
			total := 0
			var writer sync.WaitGroup
			writer.Go(func() {
				for range 40 {
					b := make([]byte, 1+rng.IntN(200<<10))
					for i := range b {
						b[i] = byte(rng.Uint32())
					}
					want.Write(b)
					total += len(b)
					_, _ = app.Write(b)
					if rng.IntN(4) == 0 {
						time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
					}
				}
				_ = app.CloseWrite()
			})
			n, err := io.Copy(have, app)
			writer.Wait()
			if err != nil || int(n) != total || !bytes.Equal(want.Sum(nil), have.Sum(nil)) {
				t.Errorf("%d of %d bytes, %v", n, total, err)
			}
			wait(t, end)
		})
	}
	wg.Wait()
	close(stop)
	kicker.Wait()
}

// An idle flow must not hold buffers or deep stacks: tens of thousands are
// open at a time.
func TestIdleFlowIsSmall(t *testing.T) {
	if underRace {
		t.Skip("the race detector holds memory of its own")
	}
	const flows = 500
	target := flow.TargetOf(serve(t, echo))
	h := handler(t, nil)
	type conn struct{ app, in *net.TCPConn }
	var conns []conn
	for range flows {
		app, in := pair(t)
		conns = append(conns, conn{app, in})
	}
	before := inUse()
	for _, c := range conns {
		carry(h, t.Context(), tcpFlow(target), &pending{conn: c.in})
		_, _ = c.app.Write([]byte("x"))
		if _, err := io.ReadFull(c.app, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	each := (inUse() - before) / flows
	t.Logf("%d bytes for each idle flow, its target's end included", each)
	if each > 16<<10 {
		t.Errorf("an idle flow holds %d bytes", each)
	}
	for _, c := range conns {
		_ = c.app.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); h.Counters().Open > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// inUse is the memory of heap and stacks after a collection.
func inUse() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// A flow of which the app has ended its half ends with the app, although nobody
// reads from it any more and the server is silent.
func TestHalfClosedEndsWithItsApp(t *testing.T) {
	h := resting(t)
	seen := make(chan error, 1)
	target := flow.TargetOf(serve(t, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, c)
		seen <- nil
		until(t, "the server is told", func() bool { return gone(c) })
	}))
	app, in := pair(t)
	done := carry(h, t.Context(), tcpFlow(target), &pending{conn: in})
	_ = app.CloseWrite()
	<-seen
	_ = app.SetLinger(0)
	_ = app.Close()
	wait(t, done)
}
