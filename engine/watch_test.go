package engine

import (
	"context"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

func TestWatchTellsEveryStateAndDropsTheSlow(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(p.url()))
	b.waitFor(t, api.Off)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch := b.Watch(ctx)
	var seen []api.State
	b.prefs(t, api.Prefs{On: ptr(true)})
	for ev := range ch {
		if n := len(seen); ev.Status != nil && (n == 0 || seen[n-1] != ev.Status.State) {
			seen = append(seen, ev.Status.State)
			if ev.Status.State == api.On {
				break
			}
		}
	}
	if got := join(seen); got != "starting on" {
		t.Errorf("states seen: %s", got)
	}
	cancel()
	for range ch { // closed after cancel
	}
	lazy := b.watch.add()
	for range watchQueue + 1 {
		b.watch.send(api.Event{Type: "status"})
	}
	n := 0
	for range lazy {
		n++
	}
	if n != watchQueue {
		t.Errorf("a slow watcher got %d events before it was dropped, want %d", n, watchQueue)
	}
}

// Whoever watches sees the service end: Stopping, Off, and no more.
func TestWatchTellsTheEnd(t *testing.T) {
	for name, end := range map[string]func(*bench){
		"signal":   func(b *bench) { b.stop() },
		"shutdown": func(b *bench) { b.Shutdown() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, testConfig(newFakeProxy(t, "127.0.0.1:0", replyOK).url()))
			b.prefs(t, api.Prefs{On: ptr(true)})
			b.waitFor(t, api.On)
			ch := b.Watch(t.Context())
			end(b)
			var seen []api.State
			for ev := range ch {
				if n := len(seen); n == 0 || seen[n-1] != ev.Status.State {
					seen = append(seen, ev.Status.State)
				}
			}
			if got := strings.TrimPrefix(join(seen), "on "); got != "stopping off" {
				t.Errorf("states seen: %s", got)
			}
		})
	}
}

func join(s []api.State) string {
	var b []string
	for _, x := range s {
		b = append(b, string(x))
	}
	return strings.Join(b, " ")
}

// A switch is told when it takes place, not with the next figures.
func TestWatchTellsTheSwitch(t *testing.T) {
	one, two := newFakeProxy(t, "127.0.0.1:0", replyOK), newFakeProxy(t, "127.0.0.1:0", replyOK)
	b := newBench(t, testConfig(one.url()))
	b.prefs(t, api.Prefs{On: ptr(true)})
	b.waitFor(t, api.On)
	b.prefs(t, api.Prefs{}) // On has been told by then
	events := b.watch.add() // without the ticks of Watch
	for _, choice := range []string{two.url(), "direct", "auto"} {
		if err := b.prefs(t, api.Prefs{Upstream: &choice}); err != nil {
			t.Fatal(err)
		}
		select {
		case ev := <-events:
			if ev.Status.Upstream.Name != b.ups.current().Spec().Name {
				t.Errorf("%s: told of %s", choice, ev.Status.Upstream.Name)
			}
		default:
			t.Errorf("%s: not told", choice)
		}
	}
}
