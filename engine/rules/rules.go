// Package rules decides where a flow goes: through the upstream in use, by a
// named upstream, directly, or nowhere.
//
//	[]Rule ──Compile──► Set ──Match(Query)──► flow.Verdict
//
//	                ┌ domain         exact name          ─┐
//	                ├ suffix         every tail of it     │ candidates, each a
//	  Query ────────┼ prefixes       enclosing networks   ├─ rule number: lowest
//	                ├ process        base name, path      │ one that holds wins
//	                └ ports          sorted segments     ─┘
//
// A rule is found by one of its conditions (the most selective kind it has)
// and its other conditions are checked then. The first rule in the user's
// order wins, so the indexes look for the lowest number.
//
// The package is pure: no I/O, no clock, no goroutine. Of ours it imports
// flow and proxy; config, dns, route and the engine import it.
package rules

import (
	"bytes"
	"net/netip"
	"slices"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// PortRange is From..To, both included.
type PortRange struct{ From, To uint16 }

// Rule is one rule as the user wrote it. All conditions that it has must hold;
// within one kind any value will do. Domain and DomainSuffix are one kind: the
// name. A condition on the name does not hold for a flow without a name, and
// one on the address not for a flow of which only the name is known.
type Rule struct {
	Domain       []string       // exactly this name
	DomainSuffix []string       // this name and every name below it; a leading dot is ignored
	CIDR         []netip.Prefix // the destination address
	Port         []PortRange    // the destination port
	// Process is the program that opened the flow: its file name, or its full
	// path if the value has a slash or backslash. Case does not matter.
	Process []string
	Via     string // auto, direct, block, or an upstream's name
}

// Query is what is known of a flow. Fields that are not known are zero.
type Query struct {
	Network flow.Network
	Name    string // any case; a trailing dot is ignored
	Addr    netip.Addr
	Port    uint16
	Process string // full path of the executable
}

// Set is a compiled list of rules. It is immutable and safe for concurrent
// use. A nil Set matches nothing.
type Set struct {
	rules   []compiled
	domain  map[string][]candidate
	suffix  map[string][]candidate
	nets    prefixIndex
	process map[string][]candidate
	ports   portIndex

	depths       uint64 // bit n: suffix has names of n dots; the last bit, of more too
	needsProcess bool
}

// candidate is a rule that one value of an index leads to. Lists of them are
// in ascending order of rule and end with the first that needs no more checks.
type candidate struct {
	rule int32  // index in Set.rules
	text string // for Verdict.Rule
}

// compiled is a rule as Match checks it: the conditions beside the one that it
// is indexed by.
type compiled struct {
	kind     flow.VerdictKind
	named    bool // by domain or cidr
	upstream string
	nets     *prefixIndex // nil: no condition
	process  map[string]struct{}
	ports    []PortRange
}

// open says that nothing is left to check.
func (c *compiled) open() bool {
	return c.nets == nil && c.process == nil && c.ports == nil
}

// NeedsProcess says whether some rule names a process, so that finding it is
// worth its price.
func (s *Set) NeedsProcess() bool { return s != nil && s.needsProcess }

// Any says whether is holds for the verdict of some rule.
func (s *Set) Any(is func(flow.VerdictKind, string) bool) bool {
	return s != nil && slices.ContainsFunc(s.rules, func(c compiled) bool { return is(c.kind, c.upstream) })
}

// Match returns the verdict of the first rule that holds for q, or Auto with
// Rule "default". It does not allocate (unless q.Name has non-ASCII letters,
// which a resolver never yields).
func (s *Set) Match(q Query) flow.Verdict {
	if s == nil || len(s.rules) == 0 {
		return flow.Verdict{Rule: "default"}
	}
	m := match{set: s, best: int32(len(s.rules)), q: q}
	m.q.Addr = q.Addr.Unmap().WithZone("")
	if q.Name != "" {
		m.byName(q.Name)
	}
	if m.q.Addr.IsValid() {
		for i := s.nets.find(m.q.Addr); i >= 0; i = s.nets.outer(i) {
			m.try(s.nets.nodes[i].list)
		}
	}
	if s.needsProcess && q.Process != "" {
		var buf [foldBytes]byte
		path := foldProcess(buf[:], q.Process)
		m.try(s.process[string(path)])
		m.try(s.process[string(baseName(path))])
	}
	if c, ok := s.ports.find(q.Port); ok && c.rule < m.best {
		m.best, m.text = c.rule, c.text
	}
	if int(m.best) == len(s.rules) {
		return flow.Verdict{Rule: "default"}
	}
	r := &s.rules[m.best]
	return flow.Verdict{Kind: r.kind, Upstream: r.upstream, Named: r.named, Rule: m.text}
}

// match is one run of Match: the best rule so far.
type match struct {
	set  *Set
	q    Query
	best int32
	text string
}

// byName tries the name, and those tails of it that start at a label and have as
// many dots as some suffix has.
func (m *match) byName(name string) {
	var buf [foldBytes]byte
	n := foldName(buf[:], name)
	m.try(m.set.domain[string(n)])
	if m.set.depths == 0 {
		return
	}
	dots := bytes.Count(n, []byte{'.'})
	if m.set.depths&depth(dots) != 0 {
		m.try(m.set.suffix[string(n)])
	}
	for i, b := range n {
		if b != '.' {
			continue
		}
		if dots--; m.set.depths&depth(dots) != 0 {
			m.try(m.set.suffix[string(n[i+1:])])
		}
	}
}

// depth is the bit in Set.depths of a name with so many dots.
func depth(dots int) uint64 { return 1 << min(dots, 63) }

// try lowers best to the first candidate of the list that holds.
func (m *match) try(list []candidate) {
	for i := range list {
		c := &list[i]
		if c.rule >= m.best {
			return
		}
		if m.set.rules[c.rule].holds(&m.q) {
			m.best, m.text = c.rule, c.text
			return
		}
	}
}

// holds checks the conditions that the index did not.
func (c *compiled) holds(q *Query) bool {
	if c.ports != nil && !inPorts(c.ports, q.Port) {
		return false
	}
	if c.nets != nil && (!q.Addr.IsValid() || c.nets.find(q.Addr) < 0) {
		return false
	}
	if c.process != nil {
		if q.Process == "" {
			return false
		}
		var buf [foldBytes]byte
		path := foldProcess(buf[:], q.Process)
		if _, ok := c.process[string(path)]; ok {
			return true
		}
		_, ok := c.process[string(baseName(path))]
		return ok
	}
	return true
}
