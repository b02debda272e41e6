package resolve

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"time"
)

// snapshot is all that Pick reads. It is immutable; what is atomic in members
// is what cannot wait for the next one.
type snapshot struct {
	policy  Policy
	members []*member // in the order of Options
	ranked  []*member // best first; those with an open circuit last
	usable  []*member // in the order of members: the circuit is not open
	keyed   bool      // Pick needs the key: policy Sticky, or identities per app or domain
	uniform bool      // all weights are equal

	alias []aliasSlot    // policy Weighted, over usable; empty if there are none
	slots *[slots]uint16 // policy Sticky, index into usable; nil if there are none
}

// slots is how many shares policy Sticky divides the keys into. Each share
// belongs to the member that wins a rendezvous for it, so that a member that
// goes or comes moves its own shares and no others.
const slots = 4096

// maxMembers is what an index into slots can tell apart.
const maxMembers = 10_000

// rank makes the next snapshot.
func rank(policy Policy, members []*member, prev *snapshot, now time.Time) *snapshot {
	s := &snapshot{policy: policy, members: members, uniform: true, keyed: policy == Sticky}
	entries := make([]ranking, len(members))
	for i, m := range members {
		e := m.ranking(now)
		entries[i] = e
		s.uniform = s.uniform && m.weight == members[0].weight
		s.keyed = s.keyed || m.ids != nil && m.ids.keyed()
		if !e.open {
			s.usable = append(s.usable, m)
		}
	}
	slices.SortStableFunc(entries, func(a, b ranking) int {
		switch {
		case a.open != b.open:
			if a.open {
				return 1
			}
			return -1
		case policy != Latency:
			return 0
		}
		return cmp.Compare(a.score, b.score)
	})
	if policy == Latency && prev != nil && len(prev.ranked) > 0 {
		// The leader stays for as long as no other is clearly better: a change
		// of proxy changes the address that sites see.
		i := slices.IndexFunc(entries, func(e ranking) bool { return e.m == prev.ranked[0] })
		if i > 0 && entries[i].open == entries[0].open && entries[i].score <= entries[0].score*1.25+5 {
			leader := entries[i]
			entries = slices.Insert(slices.Delete(entries, i, i+1), 0, leader)
		}
	}
	for _, e := range entries {
		s.ranked = append(s.ranked, e.m)
	}
	switch policy {
	case Weighted:
		s.alias = aliasTable(s.usable, now)
	case Sticky:
		s.slots = shares(s, prev)
	}
	return s
}

// ranking is what a member is sorted by.
type ranking struct {
	m     *member
	open  bool // the circuit is
	score float64
}

func (m *member) ranking(now time.Time) ranking {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := ranking{m: m, open: m.gate.Load() == open, score: m.health.score(now, m.pending.Load())}
	m.ranked.Store(math.Float64bits(e.score))
	return e
}

// first is where a flow should go; nil if nothing is usable. It may not admit.
func (s *snapshot) first(ki *keyInfo, rand func() uint64) *member {
	switch s.policy {
	case Weighted:
		if n := len(s.alias); n > 0 {
			i, frac := bits.Mul64(rand(), uint64(n))
			a := &s.alias[i]
			if frac < a.cut {
				return s.usable[i]
			}
			return s.usable[a.other]
		}
	case Sticky:
		if s.slots != nil {
			return s.usable[s.slots[ki.hash%slots]]
		}
	default:
		if len(s.ranked) > 0 {
			return s.ranked[0]
		}
	}
	return nil
}

// best is the first that ok takes, in the policy's order for this flow; nil if
// there is none. hash is the key's, or random for policy Weighted.
func (s *snapshot) best(hash uint64, ok func(*member) bool) *member {
	if s.policy == Latency || s.policy == Failover {
		for _, m := range s.ranked {
			if ok(m) {
				return m
			}
		}
		return nil
	}
	var winner *member
	var top float64
	for _, m := range s.members {
		if ok(m) {
			if v := s.rendezvous(hash, m); winner == nil || v > top {
				winner, top = m, v
			}
		}
	}
	return winner
}

// rendezvous is how strongly m bids for a share or a flow (highest random
// weight hashing): members win in proportion to their weights, each the same
// ones every time.
func (s *snapshot) rendezvous(hash uint64, m *member) float64 {
	u := mix(hash ^ m.hash)
	if s.uniform {
		return float64(u >> 11)
	}
	return float64(m.weight) / -math.Log((float64(u>>11)+0.5)/(1<<53))
}

// shares gives each slot to a member. Where the snapshot before tells, only
// what has changed is computed; the result is the same.
func shares(s, prev *snapshot) *[slots]uint16 {
	if len(s.usable) == 0 {
		return nil
	}
	owner := make([]*member, slots)
	index := make(map[*member]uint16, len(s.usable))
	for i, m := range s.usable {
		index[m] = uint16(i)
	}
	added := s.usable
	if prev != nil && prev.slots != nil && prev.uniform == s.uniform {
		if slices.Equal(prev.usable, s.usable) {
			return prev.slots
		}
		before := make(map[*member]bool, len(prev.usable))
		for _, m := range prev.usable {
			before[m] = true
		}
		added = nil
		for _, m := range s.usable {
			if !before[m] {
				added = append(added, m)
			}
		}
		for i, o := range prev.slots {
			if m := prev.usable[o]; hasKey(index, m) {
				owner[i] = m
			}
		}
	}
	out := new([slots]uint16)
	for i := range out {
		h, bidders := mix(uint64(i)+1), added
		if owner[i] == nil {
			bidders = s.usable
		}
		var top float64
		if owner[i] != nil {
			top = s.rendezvous(h, owner[i])
		}
		for _, m := range bidders {
			if v := s.rendezvous(h, m); owner[i] == nil || v > top {
				owner[i], top = m, v
			}
		}
		out[i] = index[owner[i]]
	}
	return out
}

func hasKey(m map[*member]uint16, k *member) bool { _, ok := m[k]; return ok }

// aliasSlot is one entry of Vose's table: itself below cut, other above.
type aliasSlot struct {
	cut   uint64
	other int
}

// aliasTable draws members in proportion to weight and success, in constant
// time.
func aliasTable(ms []*member, now time.Time) []aliasSlot {
	n := len(ms)
	p := make([]float64, n)
	var total float64
	for i, m := range ms {
		m.mu.Lock()
		p[i] = float64(m.weight) * m.health.rate(now)
		m.mu.Unlock()
		total += p[i]
	}
	table := make([]aliasSlot, n)
	var small, large []int
	for i := range p {
		p[i] *= float64(n) / total
		if p[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		table[s] = aliasSlot{cut: uint64(p[s]*(1<<32)) << 32, other: l}
		if p[l] -= 1 - p[s]; p[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) {
		table[i] = aliasSlot{cut: math.MaxUint64, other: i}
	}
	return table
}
