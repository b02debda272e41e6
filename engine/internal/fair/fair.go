// Package fair shares a bounded number of places between users, so that one who
// takes many cannot keep the others out.
//
//	Enter ──► free? ─yes─► a place
//	            └─no─► the user with the most places loses the one taken first
//
// Nobody waits. Users are told apart only once the places are all taken: until
// then a place costs two list operations.
//
// The listener uses it for connections that have said nothing, and whoever else
// admits local users may.
package fair

import (
	"container/list"
	"sync"
)

// Places is a number of places. K tells users apart. Its methods may be called
// by any goroutine.
type Places[K comparable] struct {
	most  int
	mu    sync.Mutex
	taken list.List // guarded by mu; of *Place[K], taken longest first
}

// Place is one place, taken by Enter until Leave, or until it is lost.
type Place[K comparable] struct {
	of    *Places[K]
	user  func() K
	lost  func()
	known bool // guarded by of.mu: key is what user returned
	key   K    // guarded by of.mu
	at    *list.Element
}

// New makes so many places.
func New[K comparable](most int) *Places[K] { return &Places[K]{most: most} }

// Enter takes a place. user tells whose it is, and is called at most once, when
// all places are taken. lost is called if the place is given to somebody else:
// it must end what the place was for, and not block. Both may be called during
// any Enter, and must not call p.
func (p *Places[K]) Enter(user func() K, lost func()) *Place[K] {
	place := &Place[K]{of: p, user: user, lost: lost}
	p.mu.Lock()
	defer p.mu.Unlock()
	place.at = p.taken.PushBack(place)
	if p.taken.Len() > p.most {
		p.evict()
	}
	return place
}

// Leave gives the place back. It may be called again, and after it was lost.
func (place *Place[K]) Leave() {
	p := place.of
	p.mu.Lock()
	defer p.mu.Unlock()
	if place.at != nil {
		p.taken.Remove(place.at)
		place.at = nil
	}
}

// evict ends the oldest place of who has the most. The caller holds mu.
func (p *Places[K]) evict() {
	count := make(map[K]int)
	var greedy K
	for e := p.taken.Front(); e != nil; e = e.Next() {
		place := e.Value.(*Place[K])
		if !place.known {
			place.key, place.known = place.user(), true
		}
		if count[place.key]++; count[place.key] > count[greedy] {
			greedy = place.key
		}
	}
	for e := p.taken.Front(); e != nil; e = e.Next() {
		if place := e.Value.(*Place[K]); place.key == greedy {
			p.taken.Remove(e)
			place.at = nil
			place.lost()
			return
		}
	}
}
