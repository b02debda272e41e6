package rules

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// benchKinds make rule i of one kind, and a query that it holds for.
var benchKinds = []struct {
	name  string
	rule  func(i int) Rule
	query func(i int) Query
}{
	{"domain",
		func(i int) Rule { return Rule{Domain: []string{fmt.Sprintf("host%d.example.com", i)}} },
		func(i int) Query { return Query{Name: fmt.Sprintf("host%d.example.com", i)} }},
	{"suffix",
		func(i int) Rule { return Rule{DomainSuffix: []string{fmt.Sprintf("zone%d.example", i)}} },
		func(i int) Query { return Query{Name: fmt.Sprintf("a.very.DEEP.name.in.zone%d.example.", i)} }},
	{"cidr4",
		func(i int) Rule { return Rule{CIDR: []netip.Prefix{prefix4(i, 20+i%13)}} },
		func(i int) Query { return Query{Addr: prefix4(i, 32).Addr()} }},
	{"cidr6",
		func(i int) Rule { return Rule{CIDR: []netip.Prefix{prefix6(i, 44+i%21)}} },
		func(i int) Query { return Query{Addr: prefix6(i, 128).Addr()} }},
	{"port",
		func(i int) Rule { p := uint16(i%65000 + 1); return Rule{Port: []PortRange{{p, p + uint16(i%3)}}} },
		func(i int) Query { return Query{Port: uint16(i%65000 + 1)} }},
	{"process",
		func(i int) Rule { return Rule{Process: []string{fmt.Sprintf("program-%d", i)}} },
		func(i int) Query { return Query{Process: fmt.Sprintf("/usr/lib/some/where/Program-%d", i)} }},
	{"mixed",
		func(i int) Rule {
			switch i % 5 {
			case 0:
				return Rule{DomainSuffix: []string{fmt.Sprintf("zone%d.example", i)}}
			case 1:
				return Rule{Domain: []string{fmt.Sprintf("host%d.example.com", i)}, Port: []PortRange{{443, 443}}}
			case 2:
				return Rule{CIDR: []netip.Prefix{prefix4(i, 24)}}
			case 3:
				return Rule{CIDR: []netip.Prefix{prefix6(i, 64)}, Process: []string{"firefox", "curl"}}
			}
			return Rule{Process: []string{fmt.Sprintf("program-%d", i)}, Port: []PortRange{{80, 80}, {443, 443}, {8000, 9000}}}
		},
		func(i int) Query { // all is known, and little holds
			return Query{Name: fmt.Sprintf("a.b.c.host%d.EXAMPLE.com", i), Addr: prefix4(i-i%5+2, 32).Addr(), Port: 443, Process: fmt.Sprintf("/usr/lib/some/where/deep/program-%d", i-i%5+3)}
		}},
}

func prefix4(i, bits int) netip.Prefix {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(i)*2654435761) // spread over all
	return netip.PrefixFrom(netip.AddrFrom4(b), bits)
}

func prefix6(i, bits int) netip.Prefix {
	b := [16]byte{0x20, 1}
	binary.BigEndian.PutUint32(b[4:], uint32(i)*2654435761)
	return netip.PrefixFrom(netip.AddrFrom16(b), bits)
}

func rulesOf(rule func(i int) Rule, n int) []Rule {
	list := make([]Rule, n)
	for i := range list {
		list[i] = rule(i)
		list[i].Via = []string{"direct", "block", "proxy"}[i%3]
	}
	return list
}

// queriesOf asks for rules all over the list, so that no cache holds the answer.
func queriesOf(query func(i int) Query, rules int) []Query {
	out := make([]Query, 4096)
	for i := range out {
		out[i] = query(i * 7919 % rules)
	}
	return out
}

// BenchmarkMatch is one query among so many rules of one kind, each query for
// another rule.
func BenchmarkMatch(b *testing.B) {
	for _, k := range benchKinds {
		for _, n := range []int{10, 100, 1000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("kind=%s/rules=%d", k.name, n), func(b *testing.B) {
				set := mustCompile(b, rulesOf(k.rule, n))
				queries := queriesOf(k.query, n)
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					set.Match(queries[i&4095])
					i++
				}
			})
		}
	}
}

// BenchmarkCompile is the whole of a list; bytes/rule is what the Set keeps.
func BenchmarkCompile(b *testing.B) {
	for _, k := range benchKinds {
		for _, n := range []int{1000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("kind=%s/rules=%d", k.name, n), func(b *testing.B) {
				list := rulesOf(k.rule, n)
				before := heap()
				set := mustCompile(b, list)
				kept := float64(heap()-before) / float64(n)
				runtime.KeepAlive(set)
				b.ReportAllocs()
				for b.Loop() {
					mustCompile(b, list)
				}
				b.ReportMetric(kept, "kept-B/rule")
			})
		}
	}
}

// heap is the bytes in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first has only unlinked
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMatchDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: the race detector allocates")
	}
	for _, k := range benchKinds {
		set := mustCompile(t, rulesOf(k.rule, 10_000))
		queries := queriesOf(k.query, 10_000)
		i, hits := 0, 0
		n := testing.AllocsPerRun(1000, func() {
			if set.Match(queries[i]).Kind != flow.Auto {
				hits++
			}
			i++
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", k.name, n)
		}
		if hits < 500 {
			t.Errorf("%s: %d of 1000 queries found a rule", k.name, hits)
		}
	}
}
