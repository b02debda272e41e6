package resolve

import (
	"math"
	"time"
)

// Figures of measurement and of the circuit breaker.
const (
	connectHalfLife = time.Minute     // how fast a measured connect time loses its weight
	successHalfLife = 2 * time.Minute // likewise a success or a failure

	hedgeDefault = time.Second
	hedgeMin     = 50 * time.Millisecond
	hedgeMax     = 3 * time.Second
	hedgeSamples = 6 // weight that a percentile needs before it is believed

	strikesToOpen = 6 // in a row: 3 failures to connect (2 each), or 6 to find an exit
	backoffFirst  = time.Second
	backoffLast   = time.Minute
	authFirst     = time.Minute // credentials do not mend themselves
	authLast      = 15 * time.Minute
	rateFirst     = 500 * time.Millisecond
	rateLast      = 30 * time.Second
	rateForget    = time.Minute
)

// The circuit's states: member.gate.
//
//	         strikes                retry time             Pick
//	closed ───────────► open ──────────────────► half ───────────► trial
//	   ▲                 ▲  (Probe, if there is one, tests instead)  │
//	   └── success ──────┴──────────────────────────────── failure ──┘
const (
	closed uint32 = iota
	open
	half  // one flow may try
	trial // one flow is trying
)

// health is what is known about a member. Guarded by member.mu.
type health struct {
	connect  decaying // milliseconds
	success  decaying // 1 or 0
	delays   delays
	measured time.Time // when a connect time was last reported
	probed   time.Time // when Probe was last begun

	strikes int         // failures in a row, weighted
	opens   int         // how often in a row the circuit has opened
	cause   OutcomeKind // why it is open
	until   time.Time   // when an open circuit may be tried again
	text    string      // the last failure; "" after a success
	trialAt time.Time   // when Run first saw the trial under way
}

// decaying is a mean in which a value loses half its weight every half-life.
type decaying struct {
	sum, weight float64
	at          time.Time
}

func (d *decaying) add(now time.Time, v float64, halfLife time.Duration) {
	f := decay(now.Sub(d.at), halfLife)
	d.sum, d.weight, d.at = d.sum*f+v, d.weight*f+1, now
}

// mean with a prior of the given weight, so that few and old values say little.
func (d *decaying) mean(now time.Time, halfLife time.Duration, prior, priorWeight float64) float64 {
	f := decay(now.Sub(d.at), halfLife)
	return (d.sum*f + prior*priorWeight) / (d.weight*f + priorWeight)
}

func decay(age, halfLife time.Duration) float64 {
	return math.Exp2(-float64(max(age, 0)) / float64(halfLife))
}

// delays is a decaying histogram of connect times: buckets widen by a fifth
// from 1 ms to about 3 s, so that a percentile is at most a fifth too high.
type delays struct {
	buckets [46]float32
	at      time.Time
}

const delayStep = 1.2

func (d *delays) add(now time.Time, v time.Duration) {
	f := float32(decay(now.Sub(d.at), connectHalfLife))
	for i := range d.buckets {
		d.buckets[i] *= f
	}
	d.at = now
	ms := float64(v) / float64(time.Millisecond)
	i := 0
	if ms > 1 {
		i = min(int(math.Ceil(math.Log(ms)/math.Log(delayStep)-1e-9)), len(d.buckets)-1)
	}
	d.buckets[i]++
}

// p95 is the upper edge of the bucket that holds the 95th percentile; 0 if too
// little is known.
func (d *delays) p95() time.Duration {
	var total, seen float32
	for _, n := range d.buckets {
		total += n
	}
	if total < hedgeSamples {
		return 0
	}
	for i, n := range d.buckets {
		if seen += n; seen >= 0.95*total {
			return time.Duration(math.Pow(delayStep, float64(i)) * float64(time.Millisecond))
		}
	}
	return hedgeMax
}

// score is a member's rank value, lower is better: the time until a dial may be
// expected to succeed, with the dials that are pending now.
func (h *health) score(now time.Time, pending int64) float64 {
	if h.measured.IsZero() {
		return math.MaxFloat32 / h.rate(now)
	}
	ms := h.connect.sum / h.connect.weight
	p := h.rate(now)
	return ms * (1 + float64(max(pending, 0))/16) / (p * p)
}

// rate is the share of dials that succeed: 1 as long as nothing is known.
func (h *health) rate(now time.Time) float64 {
	return h.success.mean(now, successHalfLife, 1, 2)
}

// record takes one outcome, and says what the circuit's state is now. gate is
// its state until now.
func (h *health) record(now time.Time, gate uint32, o Outcome, rand func() uint64) uint32 {
	switch o.Kind {
	case Canceled:
		if gate == trial {
			return half
		}
		return gate
	case Success, Target, NoUDP:
		if o.Connect > 0 {
			h.connect.add(now, float64(o.Connect)/float64(time.Millisecond), connectHalfLife)
			h.delays.add(now, o.Connect)
			h.measured = now
		}
		h.success.add(now, 1, successHalfLife)
		if gate == open && (h.cause == Auth || h.cause == RateLimited) && now.Before(h.until) {
			return gate // begun before the provider said no
		}
		h.strikes, h.text = 0, ""
		if h.cause != RateLimited || now.Sub(h.until) > rateForget {
			h.opens = 0 // a limit is met again as soon as flows are as many as before
		}
		return closed
	case Slow:
		h.connect.add(now, float64(o.Connect)/float64(time.Millisecond), connectHalfLife)
		h.measured = now
		h.strikes++
	case SessionEnded, NoExit:
		h.strikes++
	case Refused, Timeout:
		h.strikes += 2
	}
	h.success.add(now, 0, successHalfLife)
	h.text = o.Text
	fatal := o.Kind == Auth || o.Kind == RateLimited
	switch {
	case gate == open && !(o.Kind == Auth && h.cause != Auth):
		return gate // one of many dials that were under way
	case gate == closed && !fatal && h.strikes < strikesToOpen:
		return gate
	}
	h.open(now, o.Kind, rand)
	return open
}

// open sets when the circuit may be tried again: exponential back-off, of which
// a random half is taken off so that clients do not come back all at once.
func (h *health) open(now time.Time, cause OutcomeKind, rand func() uint64) {
	first, last := backoffFirst, backoffLast
	switch cause {
	case Auth:
		first, last = authFirst, authLast
	case RateLimited:
		first, last = rateFirst, rateLast
	}
	if cause != h.cause && (first != backoffFirst || h.cause == Auth || h.cause == RateLimited) {
		h.opens = 0 // another matter
	}
	wait := min(first<<min(h.opens, 16), last)
	h.opens++
	h.cause = cause
	h.until = now.Add(wait/2 + time.Duration(rand()%uint64(wait/2)))
	h.strikes = 0
}
