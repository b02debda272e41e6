package wanem

import (
	"math/rand/v2"
	"testing"
	"time"
)

func newSchedule() *schedule { return &schedule{rnd: rand.New(rand.NewPCG(1, 2))} }

func TestDelayKeepsOrderUnderJitter(t *testing.T) {
	s := newSchedule()
	l := Link{Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond}
	for i := range 1000 {
		s.add(l, time.Duration(i)*100*time.Microsecond, []byte{byte(i), byte(i >> 8)})
	}
	for i := range 1000 {
		at := s.q[0].at
		sent := time.Duration(i) * 100 * time.Microsecond
		if at < sent+5*time.Millisecond || at > sent+16*time.Millisecond {
			t.Fatalf("frame %d of %v leaves at %v", i, sent, at)
		}
		if b := s.pop(); int(b[0])|int(b[1])<<8 != i {
			t.Fatalf("frame %d overtaken by %v", i, b)
		}
	}
}

func TestRateAndQueue(t *testing.T) {
	s := newSchedule()
	l := Link{Rate: 8e6, Queue: 10 * time.Millisecond} // 1000 bytes take 1 ms
	sent := 0
	for range 50 {
		n, _ := s.add(l, 0, make([]byte, 1000))
		sent += n
	}
	if sent != 11 { // ten fill the queue, one more finds it exactly full
		t.Errorf("%d frames of 1 ms fit in 10 ms", sent)
	}
	for i := 1; i <= sent; i++ {
		if at := s.q[0].at; at != time.Duration(i)*time.Millisecond {
			t.Errorf("frame %d leaves at %v", i, at)
		}
		s.pop()
	}
}

func TestChances(t *testing.T) {
	s := newSchedule()
	const n = 20000
	lost, copies := 0, 0
	for range n {
		c, gone := s.add(Link{Loss: 0.1, Duplicate: 0.2}, 0, []byte{1})
		if gone {
			lost++
		}
		copies += c
	}
	if lost < n*9/100 || lost > n*11/100 {
		t.Errorf("%d of %d lost at 10 %%", lost, n)
	}
	if kept := n - lost; copies-kept < kept*18/100 || copies-kept > kept*22/100 {
		t.Errorf("%d copies of %d frames at 20 %%", copies-kept, kept)
	}
	overtaken := 0
	s = newSchedule()
	for i := range 1000 {
		s.add(Link{Delay: time.Millisecond, Reorder: 0.1}, time.Duration(i)*time.Microsecond, []byte{byte(i), byte(i >> 8)})
	}
	highest := -1
	for range 1000 {
		b := s.pop()
		if i := int(b[0]) | int(b[1])<<8; i < highest {
			overtaken++
		} else {
			highest = i
		}
	}
	if overtaken < 50 {
		t.Errorf("only %d frames were overtaken", overtaken)
	}
}

func TestSameSeedSameDecisions(t *testing.T) {
	a, b := newSchedule(), newSchedule()
	for i := range 1000 {
		l := Link{Loss: .3, Jitter: time.Millisecond, Duplicate: .1}
		an, al := a.add(l, time.Duration(i), []byte{0})
		bn, bl := b.add(l, time.Duration(i), []byte{0})
		if an != bn || al != bl || len(a.q) > 0 && a.q[len(a.q)-1].at != b.q[len(b.q)-1].at {
			t.Fatalf("frame %d differs", i)
		}
	}
}
