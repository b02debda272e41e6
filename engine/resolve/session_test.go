package resolve

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func oxylabs(t testing.TB, mode string) *Account {
	return &Account{Name: "ox", Template: provider(t, "oxylabs"), Username: "bob", Password: "s3cret", Session: session(t, mode)}
}

// oneShot is an account at a provider that does not rotate by itself.
func oneShot(t testing.TB) *Account {
	return &Account{Name: "v", Template: provider(t, "generic"), Username: "bob", Password: "x", Host: "gw.example", Port: 1,
		UsernameFormat: "{user}[-{session}]", Session: session(t, "per-connection")}
}

func withAccount(t testing.TB, a *Account, retired func(*Endpoint)) *Resolver {
	return newResolver(t, Options{Name: "g", Sources: []Source{{Account: a}}, Rand: numbered(), Retired: retired})
}

func TestStickyRenewsBeforeTheProviderEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var retired []*Endpoint
		r := withAccount(t, oxylabs(t, "sticky-10m"), func(e *Endpoint) { retired = append(retired, e) })
		running(t, r)
		first := mustPick(t, r, Key{})
		user := first.Username
		if first.IdleLimit != time.Minute || !strings.HasSuffix(user, "-sesstime-10") {
			t.Errorf("%+v", first)
		}
		start := time.Now()
		var e *Endpoint
		for e = first; e == first; e = mustPick(t, r, Key{App: fmt.Sprint(start), Domain: "any.example"}) {
			if e.Username != user {
				t.Fatal("the user name of a session has changed")
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if age := time.Since(start); age < 9*time.Minute-time.Second || age >= 10*time.Minute {
			t.Errorf("renewed after %v", age)
		}
		if len(retired) != 1 || retired[0] != first || e.Session == first.Session || e.ID == first.ID {
			t.Errorf("%v: %v, then %v", retired, first.Session, e.Session)
		}
		if !strings.HasSuffix(e.Username, "-sesstime-10") {
			t.Error("the life that is asked for is the whole one:", e.Username)
		}
	})
}

func TestSessionsPerAppAndPerDomain(t *testing.T) {
	r := withAccount(t, oxylabs(t, "per-app-10m"), nil)
	a := mustPick(t, r, Key{App: "a", Domain: "x.example"})
	if mustPick(t, r, Key{App: "a", Domain: "y.example"}) != a || mustPick(t, r, Key{App: "b", Domain: "x.example"}) == a {
		t.Error("not per app")
	}
	r = withAccount(t, oxylabs(t, "per-domain-10m"), nil)
	d := mustPick(t, r, Key{App: "a", Domain: "www.x.co.uk"})
	if mustPick(t, r, Key{App: "b", Domain: "img.x.co.uk"}) != d || mustPick(t, r, Key{App: "a", Domain: "y.co.uk"}) == d {
		t.Error("not per registrable domain")
	}
	in := r.Sessions()
	if len(in) != 2 || in[0].Domain+in[1].Domain != "x.co.uky.co.uk" && in[0].Domain+in[1].Domain != "y.co.ukx.co.uk" || in[0].Session == "" || in[0].Expires.IsZero() {
		t.Errorf("%+v", in)
	}
	if strings.Contains(fmt.Sprintf("%+v %v %s", in, d, d), "s3cret") {
		t.Error("the password shows")
	}
}

func TestIdleKeysAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		retired := 0
		r := withAccount(t, oxylabs(t, "per-domain-10m"), func(*Endpoint) { retired++ })
		running(t, r)
		k := Key{Domain: "busy.example"}
		mustPick(t, r, k)
		for i := range 100 {
			mustPick(t, r, Key{Domain: fmt.Sprintf("site%d.example", i)})
		}
		for range 30 * 60 {
			mustPick(t, r, k)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if in := r.Sessions(); len(in) != 1 || in[0].Domain != "busy.example" {
			t.Errorf("%d sessions", len(in))
		}
		if retired < 102 || retired > 104 { // and busy.example's own renewals
			t.Errorf("%d retired", retired)
		}
	})
}

func TestKeysAreBounded(t *testing.T) {
	r := withAccount(t, oxylabs(t, "per-domain-10m"), nil)
	for i := range buckets * maxChain * 3 / 2 {
		mustPick(t, r, Key{Domain: fmt.Sprintf("site%d.example", i)})
	}
	if n := len(r.Sessions()); n > buckets*maxChain || n < buckets*maxChain/2 {
		t.Errorf("%d sessions", n)
	}
}

func TestOneSessionForEachConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := withAccount(t, oneShot(t), nil)
		running(t, r)
		seen := map[string]bool{}
		take := func() {
			e := mustPick(t, r, Key{})
			if seen[e.Session] || e.Session == "" || !e.OneShot {
				t.Fatalf("%+v", e)
			}
			seen[e.Session] = true
		}
		for i := range 20 * batchSize {
			take()
			if i%100 == 0 {
				synctest.Wait() // Run makes the next batch
			}
		}
		m := r.snap.Load().members[0]
		if b := m.ids.batch.Load(); b.taken.Load() > batchSize {
			t.Error("Run does not keep up")
		}
		for range 5 * batchSize { // no chance for Run
			take()
		}
		// A hedge or a retry has another exit at the same gateway.
		e := mustPick(t, r, Key{})
		if n, err := r.Next(Key{}, []*Endpoint{e}); err != nil || n == e || n.Session == e.Session {
			t.Error(n, err)
		}
	})
}

func TestOneSessionForEachConnectionInParallel(t *testing.T) {
	r := withAccount(t, oneShot(t), nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var mu sync.Mutex
	seen := map[*Endpoint]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var mine []*Endpoint
			for range 1000 {
				e, err := r.Pick(Key{})
				if err != nil {
					t.Error(err)
					return
				}
				mine = append(mine, e)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range mine {
				if seen[e] {
					t.Error("handed out twice")
				}
				seen[e] = true
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRotatingProvidersNeedNoSessionForEachConnection(t *testing.T) {
	r := withAccount(t, oxylabs(t, "per-connection"), nil)
	e := mustPick(t, r, Key{})
	if e.Session != "" || e.OneShot || mustPick(t, r, Key{}) != e {
		t.Errorf("%+v", e)
	}
	if n, err := r.Next(Key{}, []*Endpoint{e}); err != nil || n != e {
		t.Error("each connection has another exit, so it may be tried again:", n, err)
	}
}

func TestFailuresOfTheExitEndASession(t *testing.T) {
	for _, c := range []struct {
		name string
		outs []Outcome
		ends bool
	}{
		{"its end", []Outcome{{Kind: SessionEnded, Status: 502}}, true},
		{"one silence", []Outcome{{Kind: Timeout, Status: 504}}, false},
		{"two", []Outcome{{Kind: Timeout, Status: 504}, {Kind: NoExit, Status: 503}}, true},
		{"two, but not in a row", []Outcome{{Kind: NoExit, Status: 503}, {Kind: Success}, {Kind: NoExit, Status: 503}}, false},
		{"a gateway that is silent", []Outcome{{Kind: Timeout}, {Kind: Timeout}}, false},
		{"a target that is down", []Outcome{{Kind: Target}, {Kind: Target}, {Kind: Target}}, false},
	} {
		for _, pinned := range []bool{false, true} {
			a := oxylabs(t, "per-app-10m")
			a.Pinned = pinned
			r := withAccount(t, a, nil)
			k := Key{App: "x"}
			other := mustPick(t, r, Key{App: "y"})
			e := mustPick(t, r, k)
			for _, o := range c.outs {
				report(r, e, o)
			}
			if ended := mustPick(t, r, k) != e; ended != (c.ends && !pinned) {
				t.Errorf("%s, pinned %v: ended %v", c.name, pinned, ended)
			}
			report(r, e, Outcome{Kind: SessionEnded}) // late, about one that is gone
			if mustPick(t, r, Key{App: "y"}) != other {
				t.Errorf("%s: it ended the session of another app", c.name)
			}
		}
	}
}

func TestNewSession(t *testing.T) {
	for _, mode := range []string{"sticky-10m", "per-app-10m", "per-domain-10m"} {
		var retired []*Endpoint
		r := withAccount(t, oxylabs(t, mode), func(e *Endpoint) { retired = append(retired, e) })
		k := Key{App: "x", Domain: "www.x.example"}
		old := mustPick(t, r, k)
		bad := errors.New("no exit")
		_, err := r.NewSession(t.Context(), k, func(context.Context, *Endpoint) error { return bad })
		if !errors.Is(err, bad) || mustPick(t, r, k) != old || len(retired) != 0 {
			t.Errorf("%s: what cannot be verified is in use: %v", mode, err)
		}
		var verified *Endpoint
		in, err := r.NewSession(t.Context(), k, func(_ context.Context, e *Endpoint) error {
			if mustPick(t, r, k) != old {
				t.Errorf("%s: in use before it was verified", mode)
			}
			verified = e
			return nil
		})
		now := mustPick(t, r, k)
		if err != nil || now != verified || in.Session != now.Session || len(retired) != 1 || retired[0] != old {
			t.Errorf("%s: %+v, %v", mode, in, err)
		}
		if mode == "per-app-10m" && in.App != "x" || mode == "per-domain-10m" && in.Domain != "x.example" {
			t.Errorf("%s: %+v", mode, in)
		}
		report(r, now, Outcome{Kind: SessionEnded})
		if mustPick(t, r, k) == now {
			t.Errorf("%s: a verified session does not end", mode)
		}
	}
	r := withAccount(t, oxylabs(t, "per-app-10m"), nil)
	x, y := mustPick(t, r, Key{App: "x"}), mustPick(t, r, Key{App: "y"})
	if _, err := r.NewSession(t.Context(), Key{}, nil); err != nil {
		t.Fatal(err)
	}
	if mustPick(t, r, Key{App: "x"}) == x || mustPick(t, r, Key{App: "y"}) == y {
		t.Error("the zero key does not renew all")
	}
	for _, r := range []*Resolver{group(t, Failover, 2), withAccount(t, oneShot(t), nil)} {
		if _, err := r.NewSession(t.Context(), Key{}, nil); !errors.Is(err, ErrNoSessions) {
			t.Error(err)
		}
	}
}

// TestIdleIdentitiesEnd: what the vendor ends for want of traffic is renewed, and
// not while a flow may keep it alive, or nobody has used it.
func TestIdleIdentitiesEnd(t *testing.T) {
	for _, mode := range []string{"sticky-20m", "per-app-20m", "per-domain-20m"} {
		synctest.Test(t, func(t *testing.T) {
			var open atomic.Bool
			a := &Account{Name: "ox", Template: provider(t, "oxylabs"), Username: "bob", Password: "x", Session: session(t, mode)} // 60 s
			r := newResolver(t, Options{Sources: []Source{{Account: a}}, Rand: numbered(), Open: func(name string) bool { return name == "ox" && open.Load() }})
			running(t, r)
			k := Key{App: "/a", Domain: "a.test"}
			dial := func() *Endpoint {
				e := mustPick(t, r, k)
				report(r, e, Outcome{Kind: Success, Connect: time.Millisecond})
				return e
			}
			first := dial()
			for range 6 { // less than its limit apart
				time.Sleep(45 * time.Second)
				if e := dial(); e != first {
					t.Fatalf("%s: in use, and renewed", mode)
				}
			}
			open.Store(true)
			time.Sleep(3 * time.Minute)
			if e := mustPick(t, r, k); e != first {
				t.Fatalf("%s: a flow was open, and it was renewed", mode)
			}
			open.Store(false)
			time.Sleep(3 * time.Minute)
			second := mustPick(t, r, k)
			if second == first {
				t.Fatalf("%s: the vendor has ended it, and it goes on", mode)
			}
			if mode == "sticky-20m" {
				time.Sleep(5 * time.Minute)
				if e := mustPick(t, r, k); e != second {
					t.Errorf("an identity that nobody had used was renewed")
				}
			}
		})
	}
}

func TestSecretsStaySecret(t *testing.T) {
	r := withAccount(t, &Account{Name: "ip", Template: provider(t, "iproyal"), Username: "bob", Password: "s3cret"}, nil)
	e := mustPick(t, r, Key{})
	for _, s := range []string{fmt.Sprint(e), fmt.Sprintf("%v %+v %#v %d", e.Password, e.Password, e.Password, e.Password), e.LogValue().String()} {
		if strings.Contains(s, "s3cret") {
			t.Error(s)
		}
	}
	if b, _ := e.Password.MarshalText(); string(b) != "[redacted]" {
		t.Error(string(b))
	}
}
