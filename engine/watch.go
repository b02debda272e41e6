package engine

import (
	"context"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// watchEvery is how often watchers get fresh figures while nothing happens.
const watchEvery = time.Second

// watchQueue is how many events a watcher may lag before it is dropped.
const watchQueue = 16

// watchers hands events to whoever watches. The zero value is ready.
type watchers struct {
	mu     sync.Mutex
	all    map[chan api.Event]struct{} // guarded by mu
	closed bool                        // guarded by mu
}

func (w *watchers) add() chan api.Event {
	ch := make(chan api.Event, watchQueue)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		close(ch)
		return ch
	}
	if w.all == nil {
		w.all = map[chan api.Event]struct{}{}
	}
	w.all[ch] = struct{}{}
	return ch
}

func (w *watchers) remove(ch chan api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.all[ch]; ok {
		delete(w.all, ch)
		close(ch)
	}
}

// send never waits: a watcher whose queue is full is dropped.
func (w *watchers) send(ev api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.all {
		select {
		case ch <- ev:
		default:
			delete(w.all, ch)
			close(ch)
		}
	}
}

func (w *watchers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for ch := range w.all {
		delete(w.all, ch)
		close(ch)
	}
}

// Watch returns every change of state and of the upstream in use, and fresh
// figures about once a second. The channel is closed when ctx ends, when the
// engine ends, and when the reader lags; it must be read until then.
func (e *Engine) Watch(ctx context.Context) <-chan api.Event {
	out := make(chan api.Event)
	in := e.watch.add()
	go func() { // ends with ctx, or when in is closed
		defer close(out)
		defer e.watch.remove(in)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			var ev api.Event
			select {
			case <-ctx.Done():
				return
			case got, ok := <-in:
				if !ok {
					return
				}
				ev = got
			case <-tick.C:
				ev = e.statusEvent()
			}
			select {
			case out <- ev:
			case <-ctx.Done():
				return
			case <-time.After(5 * time.Second): // the reader hangs
				return
			}
		}
	}()
	return out
}

func (e *Engine) statusEvent() api.Event {
	st := e.Status()
	return api.Event{Type: "status", Time: time.Now().UTC(), Status: &st}
}
