package wanem

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// schedule decides what happens to each frame and when; it is pure but for its
// random source. Times are durations since any fixed moment.
type schedule struct {
	rnd  *rand.Rand
	free time.Duration // when the rate limiter has sent everything before
	last time.Duration // latest release so far; keeps order under jitter
	seq  uint64
	q    frames
}

type frame struct {
	at  time.Duration
	seq uint64
	b   []byte
}

// add takes the frame b (which it keeps) that was read at now, and reports how
// many copies will be sent.
func (s *schedule) add(l Link, now time.Duration, b []byte) (copies int, lost bool) {
	if l.Loss > 0 && s.rnd.Float64() < l.Loss {
		return 0, true
	}
	copies = 1
	if l.Duplicate > 0 && s.rnd.Float64() < l.Duplicate {
		copies = 2
	}
	for i := range copies {
		at, ok := s.release(l, now, len(b))
		if !ok || len(s.q) >= queueFrames {
			return i, false
		}
		s.seq++
		heap.Push(&s.q, frame{at, s.seq, b})
	}
	return copies, false
}

// release is when a frame of size bytes leaves; not ok if the queue is full.
func (s *schedule) release(l Link, now time.Duration, size int) (time.Duration, bool) {
	at := now
	if l.Rate > 0 {
		limit := l.Queue
		if limit == 0 {
			limit = defaultQueue
		}
		s.free = max(s.free, now)
		if s.free-now > limit {
			return 0, false
		}
		s.free += time.Duration(float64(size*8) / l.Rate * 1e9)
		at = s.free
	}
	if l.Reorder > 0 && s.rnd.Float64() < l.Reorder {
		return at, true
	}
	at += l.Delay
	if l.Jitter > 0 {
		at += time.Duration((s.rnd.Float64()*2 - 1) * float64(l.Jitter))
	}
	s.last = max(s.last, at)
	return s.last, true
}

// frames is a heap by release time, then by arrival.
type frames []frame

func (f frames) Len() int { return len(f) }
func (f frames) Less(i, j int) bool {
	return f[i].at < f[j].at || f[i].at == f[j].at && f[i].seq < f[j].seq
}
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *frames) Push(x any)   { *f = append(*f, x.(frame)) }
func (f *frames) Pop() any {
	old := *f
	x := old[len(old)-1]
	old[len(old)-1].b = nil
	*f = old[:len(old)-1]
	return x
}

// pop removes the frame that is due first.
func (s *schedule) pop() []byte { return heap.Pop(&s.q).(frame).b }
