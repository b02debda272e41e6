// Package tray is the icon on the desktop: how the service is at a glance, and
// the switch.
//
//	client.Watch ──► watch ──► Model ──render──► View ──► ui (fyne.io/systray)
//	                             ▲                          │ clicks
//	client.SetPrefs ◄── act ─────┴──────────────────────────┘
//
// The service may come and go: watch reconnects, and meanwhile the icon says
// that nothing answers. render is pure. The desktop's thread never waits for
// the service, nor the service for the desktop: each side has a goroutine, and
// the icon changes once a second at most.
//
// ui_systray.go is the only file of this project that imports fyne.io/systray.
// app/atlantic imports this package.
package tray

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

const (
	showEvery  = time.Second // least time between two changes of the icon
	pollEvery  = 2 * time.Second
	firstRetry = 250 * time.Millisecond
	lastRetry  = 5 * time.Second
	hostWait   = 3 * time.Second // for the panel, which starts beside us at login
)

// Options of Run.
type Options struct {
	Client *client.Client
	// Hint receives a word to the user where the desktop cannot show the icon.
	Hint io.Writer
}

// ui is the desktop's side: one icon with a menu.
type ui interface {
	// run shows the first view and blocks until quit. It must be called from
	// the main goroutine.
	run(first View)
	// show changes what is shown. It is called by one goroutine, after run.
	show(View)
	// clicks delivers the IDs of clicked items; clicks nobody takes are dropped.
	clicks() <-chan string
	quit()
}

// Run shows the icon until ctx ends, the user quits it, or the session ends.
// Where the desktop shows no icons it says so on Hint and returns nil. It must
// be called from the main goroutine, once per process.
func Run(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !awaitHost(ctx, hostWait) {
		fmt.Fprintln(o.Hint, noHostHint)
		return nil
	}
	u, err := newUI()
	if err != nil {
		return err
	}
	ended, err := claimSession()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { // ends with ctx, or by Quit in the menu
		newTray(o.Client, u).loop(ctx)
		cancel()
		u.quit()
	})
	wg.Go(func() { // ends with ctx
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	})
	u.run(render(Model{}))
	cancel()
	wg.Wait()
	return nil
}

// tray joins the client and the ui.
type tray struct {
	client *client.Client
	ui     ui
	events chan func(*Model) // changes to the model, for present
	acts   chan func(context.Context)
}

func newTray(c *client.Client, u ui) *tray {
	return &tray{client: c, ui: u, events: make(chan func(*Model), 16), acts: make(chan func(context.Context), 4)}
}

// loop works until ctx ends or the user quits.
func (t *tray) loop(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { t.watch(ctx) })
	wg.Go(func() {
		for {
			select {
			case act := <-t.acts:
				act(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	t.present(ctx)
}

// present owns the model, and shows it once a second at most.
func (t *tray) present(ctx context.Context) {
	var (
		m     Model
		shown time.Time
		due   <-chan time.Time // nil: nothing new to show
	)
	for {
		select {
		case change := <-t.events:
			change(&m)
			if due == nil {
				due = time.After(max(0, showEvery-time.Since(shown)))
			}
		case <-due:
			t.ui.show(render(m))
			shown, due = time.Now(), nil
		case id := <-t.ui.clicks():
			if id == idQuit {
				return
			}
			t.clicked(id, m)
		case <-ctx.Done():
			return
		}
	}
}

// clicked hands what was clicked to the goroutine that talks to the service; a
// click too many is dropped.
func (t *tray) clicked(id string, m Model) {
	var prefs api.Prefs
	if name, ok := strings.CutPrefix(id, idUpstream); ok {
		prefs.Upstream = &name
	} else if id == idToggle && m.Status != nil {
		on := wantOn(m.Status.State)
		prefs.On = &on
	} else {
		return
	}
	select {
	case t.acts <- func(ctx context.Context) { t.change(ctx, prefs) }:
	default:
	}
}

// change asks the service for something, and shows what it answers.
func (t *tray) change(ctx context.Context, p api.Prefs) {
	st, err := t.client.SetPrefs(ctx, p)
	t.tell(ctx, func(m *Model) {
		if m.Problem = problem(err); err == nil {
			m.Status = &st
		}
	})
	if p.Upstream != nil {
		t.refresh(ctx)
	}
}

// refresh reads the list of upstreams.
func (t *tray) refresh(ctx context.Context) {
	if ups, err := t.client.Upstreams(ctx); err == nil {
		t.tell(ctx, func(m *Model) { m.Upstreams = ups })
	}
}

func (t *tray) tell(ctx context.Context, change func(*Model)) {
	select {
	case t.events <- change:
	case <-ctx.Done():
	}
}

// watch follows the service, and comes back to it when it has been away. Who
// may only read the status gets it by asking now and then.
func (t *tray) watch(ctx context.Context) {
	pause := firstRetry
	for ctx.Err() == nil {
		upstream := "\x00" // no name: the first status asks for the list
		err := t.client.Watch(ctx, func(ev api.Event) error {
			pause = firstRetry
			if ev.Status == nil {
				return nil
			}
			if ev.Status.Upstream.Name != upstream {
				upstream = ev.Status.Upstream.Name
				select {
				case t.acts <- t.refresh:
				default:
				}
			}
			t.tell(ctx, func(m *Model) { m.see(*ev.Status, "") })
			return nil
		})
		wait := pause
		if refused := (*api.Error)(nil); errors.As(err, &refused) && refused.Code == api.ErrPermission {
			wait = pollEvery
			if st, err := t.client.Status(ctx); err == nil {
				t.tell(ctx, func(m *Model) { m.see(st, "To steer it, "+refused.Hint) })
			}
		} else if ctx.Err() == nil {
			t.tell(ctx, func(m *Model) { *m = Model{Away: true, Gone: goneText(err)} })
			pause = min(2*pause, lastRetry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}
