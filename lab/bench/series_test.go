package bench

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/rules"
)

// BenchmarkMatch is the cost of a rule match by how many rules there are, for a
// flow that no rule but the last kind fits. make bench plots it.
func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10000, 100000} {
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			set, err := rules.Compile(manyRules(n))
			if err != nil {
				b.Fatal(err)
			}
			q := rules.Query{Name: "a.b.c.no-such-name.example.com", Addr: netip.MustParseAddr("20.9.196.7"), Port: 443}
			b.ReportAllocs()
			for b.Loop() {
				set.Match(q)
			}
		})
	}
}

// manyRules are n rules of three kinds.
func manyRules(n int) []rules.Rule {
	list := make([]rules.Rule, 0, n)
	for i := range n {
		var r rules.Rule
		switch i % 3 {
		case 0:
			r = rules.Rule{DomainSuffix: []string{fmt.Sprintf("s%d.example.com", i)}, Via: "direct"}
		case 1:
			r = rules.Rule{Domain: []string{fmt.Sprintf("d%d.example.com", i)}, Via: "block"}
		default:
			r = rules.Rule{CIDR: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{21, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}, Via: "direct"}
		}
		list = append(list, r)
	}
	return list
}
