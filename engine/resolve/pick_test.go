package resolve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func gateways(n int) []Gateway {
	gs := make([]Gateway, n)
	for i := range gs {
		gs[i] = Gateway{Name: fmt.Sprint("g", i), Scheme: "socks5", Host: fmt.Sprintf("g%d.example", i), Port: 1080}
	}
	return gs
}

func newResolver(t testing.TB, o Options) *Resolver {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func group(t testing.TB, p Policy, n int) *Resolver {
	return newResolver(t, Options{Name: "g", Policy: p, Sources: []Source{{Gateways: gateways(n)}}, Rand: numbered()})
}

func mustPick(t testing.TB, r *Resolver, k Key) *Endpoint {
	t.Helper()
	e, err := r.Pick(k)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func report(r *Resolver, e *Endpoint, o Outcome) {
	r.Begin(e)
	r.Report(e, o)
}

// endpoints are those of the members in the order of the options.
func endpoints(r *Resolver) []*Endpoint {
	var es []*Endpoint
	for _, m := range r.members {
		es = append(es, m.static)
	}
	return es
}

// running runs r in the bubble until the test ends.
func running(t *testing.T, r *Resolver) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
}

func TestNothingConfigured(t *testing.T) {
	r := newResolver(t, Options{})
	if _, err := r.Pick(Key{}); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
	if _, err := r.Next(Key{}, nil); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
	if _, err := r.NewSession(t.Context(), Key{}, nil); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
}

func TestFailoverGoesInOrderAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Failover, 3)
		running(t, r)
		es := endpoints(r)
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Fatal(e)
		}
		if e, err := r.Next(Key{}, es[:1]); err != nil || e != es[1] {
			t.Fatal(e, err)
		}
		if e, err := r.Next(Key{}, es[:2]); err != nil || e != es[2] {
			t.Fatal(e, err)
		}
		if e, err := r.Next(Key{}, es); !errors.Is(err, ErrNoOther) {
			t.Fatal(e, err)
		}
		for range 2 {
			report(r, es[0], Outcome{Kind: Refused, Text: "refused"})
		}
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Error("two failures are not enough:", e)
		}
		report(r, es[0], Outcome{Kind: Refused, Text: "refused"})
		if e := mustPick(t, r, Key{}); e != es[1] {
			t.Error("the circuit is open at once, without a rebuild:", e)
		}
		// After the back-off one flow alone tries it.
		time.Sleep(backoffFirst + debounce)
		synctest.Wait()
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Error("nobody tries the first:", e)
		}
		for range 10 {
			if e := mustPick(t, r, Key{}); e != es[1] {
				t.Error("more than one tries it:", e)
			}
		}
		report(r, es[0], Outcome{Kind: Refused, Text: "refused"})
		time.Sleep(debounce)
		synctest.Wait()
		if in := r.List()[2]; in.State != "open" || in.Name != "g0" || in.Error != "refused" || in.Failures != 4 {
			t.Errorf("%+v", in)
		}
		time.Sleep(2*backoffFirst + debounce) // it doubles
		synctest.Wait()
		e := mustPick(t, r, Key{})
		report(r, e, Outcome{Kind: Success, Connect: 20 * time.Millisecond})
		for range 10 {
			if e := mustPick(t, r, Key{}); e != es[0] {
				t.Error("the first is not back:", e)
			}
		}
	})
}

func TestAnAbandonedTryIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Failover, 2)
		running(t, r)
		es := endpoints(r)
		for range 3 {
			report(r, es[0], Outcome{Kind: Timeout})
		}
		time.Sleep(backoffFirst + debounce)
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Fatal(e)
		}
		report(r, es[0], Outcome{Kind: Canceled})
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Error("a flow that gave up has used up the try:", e)
		}
		// This one never reports.
		if e := mustPick(t, r, Key{}); e != es[1] {
			t.Fatal(e)
		}
		time.Sleep(trialLimit + 2*rebuildEvery)
		synctest.Wait()
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Error("the circuit stays half-open for ever:", e)
		}
	})
}

func TestAllOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Failover, 2)
		running(t, r)
		es := endpoints(r)
		for range 3 {
			report(r, es[0], Outcome{Kind: Timeout})
			report(r, es[1], Outcome{Kind: Refused})
		}
		// Perhaps it is this machine's network: go on trying.
		if e := mustPick(t, r, Key{}); e != es[0] && e != es[1] {
			t.Error(e)
		}
		report(r, es[0], Outcome{Kind: Auth, Status: 407, Text: "wrong password"})
		if e := mustPick(t, r, Key{}); e != es[1] {
			t.Error("a provider that said no is asked again:", e)
		}
		report(r, es[1], Outcome{Kind: Auth, Status: 407, Text: "quota"})
		_, err := r.Pick(Key{})
		var u *Unavailable
		if !errors.As(err, &u) || u.Cause != Auth || u.Text == "" || time.Until(u.Until) < authFirst/2-time.Second {
			t.Fatalf("%v, %+v", err, u)
		}
		report(r, es[0], Outcome{Kind: Success}) // begun before
		if _, err := r.Pick(Key{}); err == nil {
			t.Error("one late success opens it again")
		}
		time.Sleep(authFirst + debounce)
		synctest.Wait()
		mustPick(t, r, Key{})
	})
}

func TestWhoLosesEveryHedgeIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Failover, 2)
		running(t, r)
		es := endpoints(r)
		for i := range strikesToOpen {
			if e := mustPick(t, r, Key{}); e != es[0] {
				t.Fatalf("left after %d", i)
			}
			report(r, es[0], Outcome{Kind: Slow, Connect: time.Second})
		}
		if e := mustPick(t, r, Key{}); e != es[1] {
			t.Error(e)
		}
		// One that goes on like this is not tried by each flow.
		time.Sleep(backoffFirst + debounce)
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Fatal(e)
		}
		report(r, es[0], Outcome{Kind: Slow, Connect: time.Second})
		if e := mustPick(t, r, Key{}); e != es[1] {
			t.Error(e)
		}
		r.NetworkChanged()
		time.Sleep(debounce)
		synctest.Wait()
		if e := mustPick(t, r, Key{}); e != es[0] {
			t.Error("it is not tried on another network:", e)
		}
	})
}

func TestLatencyPrefersTheFasterAndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Latency, 3)
		running(t, r)
		es := endpoints(r)
		settle := func(ms ...int) *Endpoint {
			for range 20 {
				for i, n := range ms {
					report(r, es[i], Outcome{Kind: Success, Connect: time.Duration(n) * time.Millisecond})
				}
				time.Sleep(10 * time.Second)
			}
			synctest.Wait()
			return mustPick(t, r, Key{})
		}
		if e := settle(90, 40, 60); e != es[1] {
			t.Error("not the fastest:", e)
		}
		if e := settle(90, 40, 38); e != es[1] {
			t.Error("it changes for nothing:", e)
		}
		if e := settle(90, 40, 20); e != es[2] {
			t.Error("it does not change:", e)
		}
		for range 60 { // fast, but half of its dials fail
			report(r, es[2], Outcome{Kind: NoExit})
			report(r, es[2], Outcome{Kind: Success, Connect: 20 * time.Millisecond})
		}
		time.Sleep(debounce)
		synctest.Wait()
		if e := mustPick(t, r, Key{}); e != es[1] {
			t.Error("it fails every second time and is still the best:", e)
		}
		list := r.List()
		if list[0].Name != "g1" || list[0].Rank != 1 || !list[0].Measured || list[0].Connect < 35*time.Millisecond || list[0].Connect > 45*time.Millisecond {
			t.Errorf("%+v", list[0])
		}
	})
}

func TestWeightedGoesByWeight(t *testing.T) {
	gs := gateways(3)
	gs[0].Weight, gs[1].Weight, gs[2].Weight = 1, 3, 6
	r := newResolver(t, Options{Policy: Weighted, Sources: []Source{{Gateways: gs}}, Rand: numbered()})
	count := map[*Endpoint]float64{}
	const n = 100_000
	for range n {
		count[mustPick(t, r, Key{})]++
	}
	es := endpoints(r)
	for i, w := range []float64{0.1, 0.3, 0.6} {
		if got := count[es[i]] / n; math.Abs(got-w) > 0.01 {
			t.Errorf("%s: %.3f, want %.1f", es[i].Name, got, w)
		}
	}
	clear(count)
	for range n {
		e, err := r.Next(Key{}, es[2:])
		if err != nil {
			t.Fatal(err)
		}
		count[e]++
	}
	if got := count[es[1]] / n; math.Abs(got-0.75) > 0.01 || count[es[2]] != 0 {
		t.Errorf("after a failure: %v", count)
	}
}

func keys(n int) []Key {
	ks := make([]Key, n)
	for i := range ks {
		ks[i] = Key{App: fmt.Sprint("/usr/bin/app", i%7), Domain: fmt.Sprintf("www.site%d.co.uk", i)}
	}
	return ks
}

func TestStickyMovesOnlyWhatMust(t *testing.T) {
	for _, weighted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			gs := gateways(10)
			if weighted {
				gs[3].Weight = 4
			}
			r := newResolver(t, Options{Policy: Sticky, Sources: []Source{{Gateways: gs}}, Rand: numbered()})
			running(t, r)
			es, ks := endpoints(r), keys(5000)
			before := map[Key]*Endpoint{}
			count := map[*Endpoint]int{}
			for _, k := range ks {
				before[k] = mustPick(t, r, k)
				count[before[k]]++
			}
			for _, e := range es {
				share := float64(count[e]) / float64(len(ks)) * 10
				if weighted {
					share *= 1.3 / float64(e.Weight)
				}
				if share < 0.7 || share > 1.35 {
					t.Errorf("%s has %.2f of its share", e.Name, share)
				}
			}
			gone := es[3]
			for range 3 {
				report(r, gone, Outcome{Kind: Refused})
			}
			check := func(when string) {
				for _, k := range ks {
					e := mustPick(t, r, k)
					if e == gone {
						t.Fatalf("%s: picked", when)
					}
					if before[k] != gone && e != before[k] {
						t.Fatalf("%s: %v moved from %s to %s", when, k, before[k].Name, e.Name)
					}
				}
			}
			check("before the rebuild")
			time.Sleep(debounce)
			synctest.Wait()
			if s := r.snap.Load(); len(s.usable) != 9 {
				t.Fatal(len(s.usable))
			}
			check("after the rebuild")
			time.Sleep(2 * backoffFirst)
			synctest.Wait()
			report(r, gone, Outcome{Kind: Success})
			time.Sleep(debounce)
			synctest.Wait()
			for _, k := range ks {
				if mustPick(t, r, k) != before[k] {
					t.Fatalf("%v is not back", k)
				}
			}
		})
	}
}

func TestStickyIsTheSameAfterARestart(t *testing.T) {
	a, b := group(t, Sticky, 5), group(t, Sticky, 5)
	for _, k := range keys(100) {
		if x, y := mustPick(t, a, k), mustPick(t, b, k); x.Name != y.Name {
			t.Fatalf("%v: %s and %s", k, x.Name, y.Name)
		}
	}
	for _, d := range []string{"a.example.co.uk", "B.Example.co.uk.", "example.co.uk"} {
		if g := groupOf(d); g != "example.co.uk" {
			t.Errorf("%s is of %s", d, g)
		}
	}
	for _, d := range []string{"192.0.2.7", "2001:db8::1", "localhost", "co.uk", ""} {
		if g := groupOf(d); g != d {
			t.Errorf("%s is of %s", d, g)
		}
	}
}

// Shares that are computed from the snapshot before are those computed anew.
func TestSharesDoNotDependOnHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := group(t, Sticky, 40)
		rnd := numbered()
		for range 30 {
			for _, m := range r.members {
				m.gate.Store(closed)
				if rnd()%3 == 0 {
					m.gate.Store(open)
				}
			}
			prev := r.snap.Load()
			next, fresh := rank(Sticky, r.members, prev, time.Now()), rank(Sticky, r.members, nil, time.Now())
			r.snap.Store(next)
			for i := range slots {
				if next.usable[next.slots[i]] != fresh.usable[fresh.slots[i]] {
					t.Fatalf("slot %d differs", i)
				}
			}
		}
	})
}

func TestUDPOnlyWhereItIsCarried(t *testing.T) {
	gs := gateways(3)
	gs[2].UDP = true
	for _, p := range []Policy{Latency, Failover, Weighted, Sticky} {
		r := newResolver(t, Options{Policy: p, Sources: []Source{{Gateways: gs}}})
		e := mustPick(t, r, Key{Domain: "example.com", UDP: true})
		if e.Name != "g2" {
			t.Errorf("%v: %v", p, e)
		}
		if e, err := r.Next(Key{Domain: "example.com", UDP: true}, []*Endpoint{e}); !errors.Is(err, ErrNoOther) {
			t.Errorf("%v: %v, %v", p, e, err)
		}
		if _, err := group(t, p, 2).Pick(Key{UDP: true}); !errors.Is(err, ErrNoUDP) {
			t.Errorf("%v: %v", p, err)
		}
	}
}

// TestUDPRefusedForAWhile: it costs no other flows, and is tried again later.
func TestUDPRefusedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gs := gateways(2)
		gs[0].UDP, gs[1].UDP = true, true
		r := newResolver(t, Options{Policy: Failover, Sources: []Source{{Gateways: gs}}})
		pick := func(when, want string) {
			t.Helper()
			e, err := r.Pick(Key{UDP: true})
			if want == "" && !errors.Is(err, ErrNoUDP) || want != "" && (err != nil || e.Name != want) || r.UDP() != (want != "") {
				t.Errorf("%s: %v, %v", when, e, err)
			}
			if e := mustPick(t, r, Key{}); e.Name != "g0" {
				t.Errorf("%s: TCP goes to %v", when, e)
			}
		}
		es := endpoints(r)
		pick("at first", "g0")
		report(r, es[0], Outcome{Kind: NoUDP})
		pick("one refuses", "g1")
		if i := r.List()[0]; i.UDP || i.Failures != 0 || i.State != "ok" {
			t.Errorf("%+v", i)
		}
		report(r, es[1], Outcome{Kind: NoUDP})
		pick("both refuse", "")
		time.Sleep(UDPAgain)
		pick("later", "g0")
		report(r, es[0], Outcome{Kind: NoUDP})
		r.NetworkChanged()
		pick("in another network", "g0")
	})
}
