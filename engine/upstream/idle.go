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
// same age is a limit. It is pure. The zero value knows nothing.
type idleLimit struct {
	limit   time.Duration // 0: none known
	once    time.Duration // an age at which it was seen
	changed time.Time
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
	age = max(age, shortestIdle)
	again := l.once > 0 && age < 2*l.once && l.once < 2*age
	if again && (l.limit == 0 || age < l.limit) {
		l.limit = age
	}
	l.once, l.changed = age, now
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
