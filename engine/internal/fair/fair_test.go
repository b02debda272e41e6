package fair

import (
	"sync"
	"testing"
)

// TestOneUserCannotKeepOthersOut: whoever takes many places loses his own, the
// one taken first, and is the only one who does.
func TestOneUserCannotKeepOthersOut(t *testing.T) {
	p := New[string](4)
	lost := map[string][]int{}
	enter := func(user string, n int) *Place[string] {
		return p.Enter(func() string { return user }, func() { lost[user] = append(lost[user], n) })
	}
	first := enter("quiet", 0)
	for n := range 10 {
		enter("greedy", n)
	}
	enter("guest", 0)
	if len(lost["quiet"])+len(lost["guest"]) != 0 || len(lost["greedy"]) != 8 || lost["greedy"][0] != 0 || lost["greedy"][7] != 7 {
		t.Errorf("lost: %v", lost)
	}
	first.Leave()
	first.Leave()
	enter("quiet", 1)
	if len(lost["greedy"]) != 8 || len(lost["quiet"]) != 0 {
		t.Errorf("a place was free, yet lost: %v", lost)
	}
}

// TestUsersAreAskedOnce: and not at all while there are places.
func TestUsersAreAskedOnce(t *testing.T) {
	p := New[int](3)
	asked := 0
	enter := func() { p.Enter(func() int { asked++; return asked }, func() {}) }
	for range 3 {
		enter()
	}
	if asked != 0 {
		t.Errorf("asked %d times while there were places", asked)
	}
	enter()
	enter()
	if asked != 5 {
		t.Errorf("asked %d times for 5 places", asked)
	}
}

func TestConcurrent(t *testing.T) {
	p := New[int](8)
	var wg sync.WaitGroup
	for user := range 16 {
		wg.Go(func() {
			for range 100 {
				p.Enter(func() int { return user }, func() {}).Leave()
			}
		})
	}
	wg.Wait()
	if n := p.taken.Len(); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}
