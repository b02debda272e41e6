package rules

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
)

// prefixIndex finds the networks that enclose an address. Networks are either
// nested or disjoint, so sorted by first address (outer before inner) each has
// one closest enclosing network, and every network that holds an address is
// among the ancestors of the last one that starts at or before it. That takes
// O(n) memory for IPv6 too, where a bitwise trie would take 128 nodes each.
type prefixIndex struct {
	nodes []prefixNode // IPv4 first
	// The first addresses of nodes, apart so that searching touches little memory.
	starts4 []uint32
	starts6 [][2]uint64
}

type prefixNode struct {
	prefix netip.Prefix // masked, never IPv4-mapped
	parent int32        // the closest enclosing network, -1 if none
	list   []candidate  // nil where only membership is asked
}

// newPrefixIndex makes the index of the keys of m.
func newPrefixIndex(m map[netip.Prefix][]candidate) prefixIndex {
	nodes := make([]prefixNode, 0, len(m))
	for p, list := range m {
		nodes = append(nodes, prefixNode{prefix: p, parent: -1, list: list})
	}
	slices.SortFunc(nodes, func(a, b prefixNode) int {
		if c := a.prefix.Addr().Compare(b.prefix.Addr()); c != 0 {
			return c
		}
		return cmp.Compare(a.prefix.Bits(), b.prefix.Bits())
	})
	var stack []int32
	for i := range nodes {
		for len(stack) > 0 && !nodes[stack[len(stack)-1]].prefix.Contains(nodes[i].prefix.Addr()) {
			stack = stack[:len(stack)-1]
		}
		if len(stack) > 0 {
			nodes[i].parent = stack[len(stack)-1]
		}
		stack = append(stack, int32(i))
	}
	x := prefixIndex{nodes: nodes}
	for _, n := range nodes {
		if a := n.prefix.Addr(); a.Is4() {
			x.starts4 = append(x.starts4, number4(a))
		} else {
			x.starts6 = append(x.starts6, number6(a))
		}
	}
	return x
}

// find returns the innermost network that holds a, or -1.
func (x *prefixIndex) find(a netip.Addr) int32 {
	i := x.last(a)
	for i >= 0 && !x.nodes[i].prefix.Contains(a) {
		i = x.nodes[i].parent
	}
	return i
}

// last returns the last network of a's family that starts at or before a, or -1.
func (x *prefixIndex) last(a netip.Addr) int32 {
	if a.Is4() {
		n := number4(a)
		lo, hi := 0, len(x.starts4) // starts4[:lo] are at or before a
		for lo < hi {
			if mid := int(uint(lo+hi) >> 1); x.starts4[mid] <= n {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		return int32(lo) - 1
	}
	n := number6(a)
	lo, hi := 0, len(x.starts6)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if s := &x.starts6[mid]; s[0] < n[0] || s[0] == n[0] && s[1] <= n[1] {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return -1
	}
	return int32(len(x.starts4) + lo - 1)
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func number6(a netip.Addr) [2]uint64 {
	b := a.As16()
	return [2]uint64{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

// outer returns the next network that encloses nodes[i], or -1.
func (x *prefixIndex) outer(i int32) int32 { return x.nodes[i].parent }

// canonical masks p, and makes an IPv4 network of an IPv4-mapped one.
func canonical(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// portIndex maps every port to the lowest rule that has no condition but
// ports: segment i reaches from starts[i] to just before starts[i+1].
type portIndex struct {
	starts []uint16
	rules  []candidate // rule < 0: none
}

// newPortIndex builds the index from ranges in ascending order of rule.
func newPortIndex(ranges []portEntry) portIndex {
	if len(ranges) == 0 {
		return portIndex{}
	}
	lowest := make([]int32, 1<<16) // index in ranges + 1; 0: none
	// free[p] leads to the lowest port from p on that no rule has taken, so
	// that the work is bounded by the ports, not by ports times rules.
	free := make([]int32, 1<<16+1)
	for p := range free {
		free[p] = int32(p)
	}
	nextFree := func(p int32) int32 {
		for free[p] != p {
			free[p] = free[free[p]]
			p = free[p]
		}
		return p
	}
	for i := range ranges {
		for p := nextFree(int32(ranges[i].From)); p <= int32(ranges[i].To); p = nextFree(p) {
			lowest[p], free[p] = int32(i)+1, p+1
		}
	}
	var x portIndex
	for p, i := range lowest {
		if p > 0 && i == lowest[p-1] {
			continue
		}
		c := candidate{rule: -1}
		if i > 0 {
			c = ranges[i-1].candidate
		}
		x.starts, x.rules = append(x.starts, uint16(p)), append(x.rules, c)
	}
	return x
}

type portEntry struct {
	PortRange
	candidate
}

func (x *portIndex) find(port uint16) (candidate, bool) {
	if len(x.starts) == 0 {
		return candidate{}, false
	}
	i := sort.Search(len(x.starts), func(i int) bool { return x.starts[i] > port }) - 1
	return x.rules[i], x.rules[i].rule >= 0
}

// inPorts says whether port is in one of the sorted, disjoint ranges.
func inPorts(ranges []PortRange, port uint16) bool {
	lo, hi := 0, len(ranges)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if ranges[mid].To < port {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo < len(ranges) && ranges[lo].From <= port
}

// mergePorts sorts ranges and joins those that touch.
func mergePorts(in []PortRange) []PortRange {
	if len(in) == 0 {
		return nil
	}
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b PortRange) int { return cmp.Compare(a.From, b.From) })
	n := 0
	for _, r := range out[1:] {
		if uint32(r.From) <= uint32(out[n].To)+1 {
			out[n].To = max(out[n].To, r.To)
			continue
		}
		n++
		out[n] = r
	}
	return out[:n+1]
}
