package upstream

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// BenchmarkDialWarm dials by connections of the pool, through a proxy on
// loopback that answers at once: what it takes of us, and of the machine for
// making the next one.
func BenchmarkDialWarm(b *testing.B) {
	for _, scheme := range []string{"socks5", "http"} {
		for _, early := range []string{"", getHead} {
			name := map[string]string{"socks5": "SOCKS5", "http": "CONNECT"}[scheme]
			if early != "" {
				name += "/early"
			}
			b.Run(name, func(b *testing.B) { benchmarkDial(b, scheme, early) })
		}
	}
}

func benchmarkDial(b *testing.B, scheme, early string) {
	m := &moody{socks: scheme == "socks5"}
	u := open(b, scheme+"://"+serve(b, m.handle).String(), nil, Options{})
	u.SetEarly(EarlyCarries)
	u.prover.proven.Store(1 << 20)
	target := flow.Target{Name: "x.example", Port: 80}
	var tr Trace
	ctx := WithTrace(context.Background(), &tr)
	dial := func() {
		c, err := u.DialStream(ctx, target, []byte(early))
		if err != nil {
			b.Fatal(err)
		}
		abort(c.(*net.TCPConn))
	}
	dial()
	time.Sleep(50 * time.Millisecond)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		dial()
	}
	s := u.Stats()
	b.ReportMetric(float64(s.WarmHits)/float64(s.Flows), "warm/op")
}

// BenchmarkPool takes a connection and puts it back.
func BenchmarkPool(b *testing.B) {
	f := &fakes{}
	p := newPool(0, &counters{}, f.open)
	defer p.close()
	if _, err := p.take(context.Background(), false); err != nil {
		b.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	b.ReportAllocs()
	for b.Loop() {
		w, err := p.take(context.Background(), false)
		if err != nil {
			b.Fatal(err)
		}
		w.since = time.Now()
		p.put(w)
	}
}

// TestPoolTakeAllocatesNothing: neither does looking whether a connection
// lives.
func TestPoolTakeAllocatesNothing(t *testing.T) {
	if underRace || !canPeek {
		t.Skip("SKIPPED: the race detector allocates, or nothing can be peeked at here")
	}
	m := &moody{}
	u := open(t, "http://"+serve(t, m.handle).String(), nil, Options{PoolMax: 2})
	flowOn(t, u, "x")
	settle(t, u, 2)
	p := u.streams.(*connect).line.pool
	n := testing.AllocsPerRun(100, func() {
		w, err := p.take(context.Background(), false)
		if err != nil || !w.pooled {
			t.Fatal(err)
		}
		w.since = time.Now()
		p.put(w)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkFirstByte measures a flow from its dial to the first byte back, in
// round trips of a path of 20 ms. Without a pool the connect of TCP is not in
// it, which would be one more.
func BenchmarkFirstByte(b *testing.B) {
	const rtt = 20 * time.Millisecond
	for _, scheme := range []string{"socks5", "http"} {
		for _, how := range []struct {
			name    string
			verdict Verdict
			pool    int
		}{{"early", EarlyCarries, 0}, {"plain", EarlyRefuses, 0}, {"cold", EarlyRefuses, -1}} {
			b.Run(scheme+"/"+how.name, func(b *testing.B) {
				m := &moody{socks: scheme == "socks5"}
				addr := delayed(b, serve(b, m.handle).String(), rtt/2)
				u := open(b, scheme+"://"+addr, nil, Options{PoolMax: how.pool})
				u.SetEarly(how.verdict)
				u.prover.proven.Store(1 << 20)
				firstByte(b, u)
				time.Sleep(10 * rtt)
				var total time.Duration
				for b.Loop() {
					total += firstByte(b, u)
					time.Sleep(rtt)
				}
				b.ReportMetric(float64(total)/float64(b.N)/float64(rtt), "RTT/flow")
			})
		}
	}
}

func firstByte(b *testing.B, u *Upstream) time.Duration {
	begin := time.Now()
	c, err := u.DialStream(context.Background(), flow.Target{Name: "x.example", Port: 80}, []byte(getHead))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	return time.Since(begin)
}
