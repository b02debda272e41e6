package netstack

import (
	"sync"
	"testing"
)

// TestTable lets readers without a lock meet writers; run it with -race.
func TestTable(t *testing.T) {
	tab := newTable[uint16]()
	const ports = 500
	var stay [ports]uint16
	for i := range uint16(ports) {
		stay[i] = i
		tab.getOrPut(tuple{sport: i, dport: 1}, func() *uint16 { return &stay[i] })
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { // comes and goes
			for round := range 20 {
				for i := range uint16(ports) {
					v := uint16(round)
					got, made := tab.getOrPut(tuple{sport: i, dport: 2}, func() *uint16 { return &v })
					if made && !tab.remove(tuple{sport: i, dport: 2}, got) {
						t.Error("what was put cannot be removed")
					}
				}
			}
		})
		wg.Go(func() {
			for range 20 {
				for i := range uint16(ports) {
					if v := tab.get(&tuple{sport: i, dport: 1}); v != &stay[i] {
						t.Errorf("port %d has %v", i, v)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := tab.count.Load(); n != ports {
		t.Errorf("%d values, want %d", n, ports)
	}
	seen := 0
	tab.each(func(k tuple, v *uint16) { seen++; tab.remove(k, v) })
	if n := tab.count.Load(); n != 0 || seen != ports {
		t.Errorf("each saw %d values of %d, %d are left", seen, ports, n)
	}
	if tab.remove(tuple{sport: 1, dport: 1}, &stay[1]) {
		t.Error("removed twice")
	}
}

func TestFIFO(t *testing.T) {
	var q fifo[int]
	next := 0
	for i := range 10000 {
		q.push(i)
		if i%3 != 0 {
			if v := q.pop(); v != next {
				t.Fatalf("got %d, want %d", v, next)
			}
			next++
		}
	}
	for ; q.len() > 0; next++ {
		if v := q.pop(); v != next {
			t.Fatalf("got %d, want %d", v, next)
		}
	}
	if next != 10000 {
		t.Errorf("%d came out", next)
	}
}
