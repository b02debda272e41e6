package resolve

import (
	"fmt"
	"testing"
	"time"
)

func policies() []Policy { return []Policy{Latency, Failover, Weighted, Sticky} }

// measured is a group in steady state: every member has been used.
func measured(b testing.TB, p Policy, n int) *Resolver {
	gs := gateways(n)
	for i := range gs {
		gs[i].Weight = 1 + i%3
	}
	r, err := New(Options{Policy: p, Sources: []Source{{Gateways: gs}}})
	if err != nil {
		b.Fatal(err)
	}
	for i, m := range r.members {
		for range 3 {
			r.Begin(m.static)
			r.Report(m.static, Outcome{Kind: Success, Connect: time.Duration(10+i%50) * time.Millisecond})
		}
	}
	r.rebuild(time.Now())
	return r
}

func TestPickAllocatesNothing(t *testing.T) {
	if underRace {
		t.Skip("the race detector allocates")
	}
	ks := keys(64)
	check := func(name string, r *Resolver) {
		for _, k := range ks { // their sessions are made at the first flow
			mustPick(t, r, k)
		}
		i := 0
		if n := testing.AllocsPerRun(100, func() { i++; _, _ = r.Pick(ks[i%len(ks)]) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	for _, p := range policies() {
		for _, n := range []int{1, 1000} {
			check(fmt.Sprint(p, " of ", n), measured(t, p, n))
		}
	}
	for _, mode := range []string{"sticky-10m", "per-app-10m", "per-domain-10m", "per-connection"} {
		check(mode, withAccount(t, oxylabs(t, mode), nil))
	}
	r := measured(t, Latency, 10)
	e := mustPick(t, r, Key{})
	if n := testing.AllocsPerRun(1000, func() {
		r.Begin(e)
		r.HedgeAfter(e)
		r.Report(e, Outcome{Kind: Success, Connect: 20 * time.Millisecond})
	}); n != 0 {
		t.Errorf("Report: %v allocations", n)
	}
	// What Run has made in advance is handed out as it is.
	r = withAccount(t, oneShot(t), nil)
	if n := testing.AllocsPerRun(batchSize/4, func() { _, _ = r.Pick(Key{}) }); n != 0 {
		t.Errorf("per connection: %v allocations", n)
	}
}

// BenchmarkPick has all processors pick from one Resolver.
func BenchmarkPick(b *testing.B) {
	ks := keys(256)
	for _, p := range policies() {
		for _, n := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("policy=%v/endpoints=%d", p, n), func(b *testing.B) { pickInParallel(b, measured(b, p, n), ks) })
		}
	}
	for _, mode := range []string{"sticky-10m", "per-app-10m", "per-domain-10m"} {
		b.Run("session="+mode, func(b *testing.B) { pickInParallel(b, withAccount(b, oxylabs(b, mode), nil), ks) })
	}
}

func pickInParallel(b *testing.B, r *Resolver, ks []Key) {
	for _, k := range ks {
		if _, err := r.Pick(k); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := r.Pick(ks[i%len(ks)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkPickOneShot includes the making of identities.
func BenchmarkPickOneShot(b *testing.B) {
	r := withAccount(b, oneShot(b), nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Pick(Key{}); err != nil {
			b.Fatal(err)
		}
		r.snap.Load().members[0].ids.refill()
	}
}

func BenchmarkReport(b *testing.B) {
	r := measured(b, Latency, 10)
	e := r.members[3].static
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Begin(e)
			r.Report(e, Outcome{Kind: Success, Connect: 13 * time.Millisecond})
		}
	})
}

func BenchmarkNext(b *testing.B) {
	for _, p := range policies() {
		for _, n := range []int{10, 1000} {
			b.Run(fmt.Sprintf("policy=%v/endpoints=%d", p, n), func(b *testing.B) {
				r := measured(b, p, n)
				k := Key{Domain: "www.example.com"}
				first, err := r.Pick(k)
				if err != nil {
					b.Fatal(err)
				}
				tried := []*Endpoint{first}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.Next(k, tried); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkRank is what Run does every 30 seconds; with one circuit that opens
// and closes, as after a report that changes the ranking.
func BenchmarkRank(b *testing.B) {
	for _, p := range policies() {
		for _, n := range []int{10, 1000, maxMembers} {
			b.Run(fmt.Sprintf("policy=%v/endpoints=%d", p, n), func(b *testing.B) {
				r := measured(b, p, n)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					r.members[1].gate.Store([2]uint32{closed, open}[i&1])
					r.rebuild(time.Now())
				}
			})
		}
	}
}
