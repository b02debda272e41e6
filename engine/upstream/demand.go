package upstream

import (
	"math"
	"time"
)

const (
	burstSetups  = 4                      // set-up times that a burst's window spans …
	minWindow    = 250 * time.Millisecond // … but at least so much: a page's connections come within that
	maxWindow    = 2 * time.Second
	peakHalfLife = time.Minute
	headroom     = 1.25                 // of the greatest burst: the next may be greater
	coldStock    = 12                   // as long as nothing is known: what a browser opens for a page
	coldTime     = 2 * time.Minute      // after the first flow
	forgetAfter  = 3 * time.Minute      // without a flow nothing is kept warm
	nearSetup    = 2 * time.Millisecond // of a proxy that is worth no pool in a rush
)

// demand estimates how many connections to keep ready: as many as are taken
// within the time that new ones need, at the busiest that was seen lately. It
// is pure: the caller says what time it is.
//
//	flows   ▏▏▏      ▏▏▏▏▏▏        ▏▏▏▏
//	window  └──┘3    └────┘6       └──┘4     set-up time × 4
//	peak      3 ╲____  6 ╲_______________    half-life 1 min
type demand struct {
	recent [poolMax]int64 // of flows, Unix ns; a ring
	next   int
	first  time.Time     // flow after a pause
	last   time.Time     // flow; zero: never
	peak   float64       // flows in a window, at last
	setup  time.Duration // mean of how long a new connection takes
	quick  time.Duration // how long it takes when nothing is in the way
}

// note counts a flow.
func (d *demand) note(now time.Time) {
	if d.last.IsZero() || now.Sub(d.last) > forgetAfter {
		d.first, d.peak = now, 0
	}
	faded := d.faded(now)
	d.recent[d.next] = now.UnixNano()
	d.next = (d.next + 1) % len(d.recent)
	window := min(max(burstSetups*d.setup, minWindow), maxWindow)
	n := 0
	for i := range d.recent {
		at := d.recent[(d.next-1-i+2*len(d.recent))%len(d.recent)]
		if now.UnixNano()-at > int64(window) {
			break
		}
		n++
	}
	d.peak, d.last = max(float64(n), faded), now
}

// took notes how long a new connection took to be made.
func (d *demand) took(t time.Duration) {
	if d.setup == 0 {
		d.setup = t
	}
	d.setup += (t - d.setup) / 8
	if d.quick == 0 || t < d.quick {
		d.quick = t
	}
	d.quick += (t - d.quick) / 64
}

// rush says that more flows come in a moment than a pool holds, to a proxy so
// near that making connections ahead gains them nothing and
// costs the processor that they compete for.
func (d *demand) rush(now time.Time) bool {
	return d.quick > 0 && d.quick < nearSetup && now.UnixNano()-d.recent[d.next] < int64(minWindow)
}

func (d *demand) faded(now time.Time) float64 {
	if d.last.IsZero() {
		return 0
	}
	return d.peak * math.Exp2(-float64(now.Sub(d.last))/float64(peakHalfLife))
}

// stock is how many connections to keep, where each serves for life before it
// is replaced.
func (d *demand) stock(now time.Time, life time.Duration) int {
	if d.last.IsZero() || now.Sub(d.last) > forgetAfter {
		return 0
	}
	n := int(math.Ceil(d.faded(now)*headroom)) + 1
	if now.Sub(d.first) < coldTime {
		n = max(n, coldStock)
	}
	// A proxy that soon hangs up is not worth being connected to all the time:
	// at most about four new connections a second.
	return min(n, max(2, int(4*life.Seconds())))
}
