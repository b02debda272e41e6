package upstream

import (
	"slices"
	"sync"
	"time"
)

const (
	paceWindow   = 64 // answers that count
	paceEvery    = 16 // of these between looks
	leastPace    = 300 * time.Millisecond
	unknownPace  = time.Second
	paceMultiple = 3 // of the 95th percentile
)

// pace knows how long a proxy takes to answer a request. The zero value is
// ready.
type pace struct {
	mu    sync.Mutex
	last  [paceWindow]time.Duration // guarded by mu
	n     int                       // guarded by mu; added ever
	limit time.Duration             // guarded by mu
}

func (p *pace) add(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[p.n%paceWindow] = d
	p.n++
	if p.n%paceEvery != 1 {
		return
	}
	known := p.last
	sorted := known[:min(p.n, paceWindow)]
	slices.Sort(sorted)
	p.limit = max(paceMultiple*sorted[len(sorted)*95/100], leastPace)
}

// patience is how long to wait for an answer before it is worth asking again.
func (p *pace) patience() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit == 0 {
		return unknownPace
	}
	return min(p.limit, handshakeTimeout)
}
