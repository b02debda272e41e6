package upstream

import "time"

const (
	longestIdle  = 50 * time.Second       // that a connection is kept, unless the proxy is known to hang up earlier
	shortestIdle = 200 * time.Millisecond // a limit is never taken for less
	idleMargin   = 0.8                    // of the proxy's limit is made use of
	growAfter    = 5 * time.Minute        // without a loss a longer life is tried again
	minSweep     = 100 * time.Millisecond
	maxSweep     = time.Second
)

// idleLimit learns after how long a proxy hangs up on a connection that asks
// for nothing. Once is chance, or a restart; what happens again at about the
// same age, and to none that is older, is a limit. It is pure. The zero value
// knows nothing.
type idleLimit struct {
	limit   time.Duration // 0: none known
	changed time.Time
	last    time.Duration // an age at which connections ended …
	times   int           // … in a row
	oldest  time.Duration // that a connection was seen alive …
	seen    time.Time     // … then
}

// life is how long a connection may be idle before it is replaced.
func (l *idleLimit) life() time.Duration {
	if l.limit == 0 {
		return longestIdle
	}
	return min(time.Duration(float64(l.limit)*idleMargin), longestIdle)
}

// lost notes that the proxy has hung up on a connection that was idle for age.
func (l *idleLimit) lost(now time.Time, age time.Duration) {
	if l.oldest > age+age/4 && now.Sub(l.seen) < 2*growAfter {
		return // others have lived longer
	}
	need := 2
	if age < shortestIdle {
		age, need = shortestIdle, 4
	}
	if age > 2*l.last || l.last > 2*age {
		l.times = 0
	}
	l.times++
	l.last, l.changed = age, now
	if l.times >= need && (l.limit == 0 || age < l.limit) {
		l.limit = age
	}
}

// lives notes that a connection was alive after having been idle for age.
func (l *idleLimit) lives(now time.Time, age time.Duration) {
	if age >= l.oldest || now.Sub(l.seen) >= 2*growAfter {
		l.oldest, l.seen = age, now
	}
}

// grow lets an old lesson fade: proxies are reconfigured, and a limit may have
// been a restart.
func (l *idleLimit) grow(now time.Time) {
	if l.limit == 0 || now.Sub(l.changed) < growAfter {
		return
	}
	l.changed = now
	if l.limit += l.limit / 2; l.life() == longestIdle {
		l.limit = 0
	}
}

// sweep is how often idle connections are looked at.
func (l *idleLimit) sweep() time.Duration {
	return min(max(l.life()/8, minSweep), maxSweep)
}
