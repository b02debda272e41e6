package tray

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// fakeUI records when it is told to show what.
type fakeUI struct {
	views []View
	times []time.Time
	click chan string
}

func (u *fakeUI) run(View)              {}
func (u *fakeUI) quit()                 {}
func (u *fakeUI) clicks() <-chan string { return u.click }
func (u *fakeUI) show(v View)           { u.views, u.times = append(u.views, v), append(u.times, time.Now()) }

// TestOncePerSecond: a hundred changes a second reach the desktop as one, and
// the last one always arrives.
func TestOncePerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &fakeUI{click: make(chan string)}
		tr := newTray(nil, u)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); tr.present(ctx) }()
		for i := range 500 {
			tr.tell(ctx, func(m *Model) {
				m.see(api.Status{State: api.On, Upstream: api.Upstream{Name: "x", RTTms: float64(i + 1)}}, "")
			})
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * showEvery)
		cancel()
		<-done
		for i := 1; i < len(u.times); i++ {
			if d := u.times[i].Sub(u.times[i-1]); d < showEvery {
				t.Errorf("two changes within %v", d)
			}
		}
		if n := len(u.views); n < 5 || n > 7 {
			t.Errorf("shown %d times in 5 s", n)
		}
		if last := u.views[len(u.views)-1].Tooltip; last != "AtlanticProxy: on · x · 500 ms" {
			t.Errorf("at last %q", last)
		}
	})
}

// TestBusyService: while the service takes its time over a click, the menu
// goes on, and impatient clicks do not pile up.
func TestBusyService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &fakeUI{click: make(chan string)}
		tr := newTray(nil, u) // nobody takes from acts
		done := make(chan struct{})
		go func() { defer close(done); tr.present(t.Context()) }()
		tr.tell(t.Context(), func(m *Model) { m.see(api.Status{State: api.Off}, "") })
		for range 50 {
			u.click <- idToggle
		}
		if n := len(tr.acts); n != cap(tr.acts) {
			t.Errorf("%d clicks are kept", n)
		}
		u.click <- idQuit
		<-done
	})
}
