package h2

import (
	"sync"
	"time"
)

// deadline is a point in time that others wait for and that can be moved, as
// in net.Pipe.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	fired chan struct{} // closed once the deadline has passed
}

func makeDeadline() deadline { return deadline{fired: make(chan struct{})} }

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.fired // the timer has run, or is about to
	}
	d.timer = nil
	closed := d.hasFired()
	switch left := time.Until(t); {
	case t.IsZero():
		if closed {
			d.fired = make(chan struct{})
		}
	case left > 0:
		if closed {
			d.fired = make(chan struct{})
		}
		fired := d.fired
		d.timer = time.AfterFunc(left, func() { close(fired) })
	case !closed:
		close(d.fired)
	}
}

func (d *deadline) hasFired() bool {
	select {
	case <-d.fired:
		return true
	default:
		return false
	}
}

// wait is closed when the deadline as it is now has passed.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fired
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hasFired()
}
