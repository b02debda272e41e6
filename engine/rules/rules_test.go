package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

func pfx(s ...string) (out []netip.Prefix) {
	for _, s := range s {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func mustCompile(t testing.TB, list []Rule) *Set {
	t.Helper()
	s, err := Compile(list)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMatch(t *testing.T) {
	set := mustCompile(t, []Rule{
		{Domain: []string{"www.Example.com"}, Via: "block"},                                                  // 1
		{DomainSuffix: []string{".example.com"}, Port: []PortRange{{443, 443}}, Via: "fast"},                 // 2
		{DomainSuffix: []string{"example.com", "bücher.de"}, Via: "direct"},                                  // 3
		{CIDR: pfx("10.1.0.0/16"), Port: []PortRange{{8000, 9000}}, Via: "block"},                            // 4
		{CIDR: pfx("10.0.0.0/8", "2001:db8::/32"), Via: "direct"},                                            // 5
		{Process: []string{"Firefox", "/usr/bin/curl", `C:\Tools\x.exe`}, Via: "fast"},                       // 6
		{Port: []PortRange{{25, 25}, {6881, 6889}}, Via: "block"},                                            // 7
		{Domain: []string{"both.test"}, CIDR: pfx("192.0.2.0/24"), Process: []string{"both"}, Via: "direct"}, // 8
	})
	a := netip.MustParseAddr
	tests := []struct {
		name string
		q    Query
		want string
	}{
		{"exact", Query{Name: "www.example.com", Port: 443}, "block rule 1: domain www.example.com"},
		{"case and dot", Query{Name: "WWW.EXAMPLE.com."}, "block rule 1: domain www.example.com"},
		{"suffix and port", Query{Name: "a.b.example.com", Port: 443}, "fast rule 2: domain_suffix example.com"},
		{"suffix itself", Query{Name: "example.com", Port: 443}, "fast rule 2: domain_suffix example.com"},
		{"suffix other port", Query{Name: "example.com", Port: 80}, "direct rule 3: domain_suffix example.com"},
		{"not at a label", Query{Name: "notexample.com", Port: 80}, "auto default"},
		{"idn U-label", Query{Name: "www.BÜCHER.de"}, "direct rule 3: domain_suffix xn--bcher-kva.de"},
		{"idn A-label", Query{Name: "XN--bcher-kva.de"}, "direct rule 3: domain_suffix xn--bcher-kva.de"},
		{"inner network", Query{Addr: a("10.1.2.3"), Port: 8000}, "block rule 4: cidr 10.1.0.0/16"},
		{"inner network, other port", Query{Addr: a("10.1.2.3"), Port: 7999}, "direct rule 5: cidr 10.0.0.0/8"},
		{"mapped", Query{Addr: a("::ffff:10.9.9.9")}, "direct rule 5: cidr 10.0.0.0/8"},
		{"zone", Query{Addr: a("2001:db8::1%eth0")}, "direct rule 5: cidr 2001:db8::/32"},
		{"outside", Query{Addr: a("11.0.0.0")}, "auto default"},
		{"process base", Query{Process: "/opt/firefox/FIREFOX"}, "fast rule 6: process firefox"},
		{"process path", Query{Process: "/usr/bin/curl"}, "fast rule 6: process /usr/bin/curl"},
		{"process other path", Query{Process: "/home/x/curl"}, "auto default"},
		{"process windows", Query{Process: `c:\tools\X.EXE`}, `fast rule 6: process c:\tools\x.exe`},
		{"port", Query{Port: 6885}, "block rule 7: port 6881-6889"},
		{"single port", Query{Port: 25}, "block rule 7: port 25"},
		{"first wins over later index", Query{Name: "example.com", Addr: a("10.1.1.1"), Port: 25}, "direct rule 3: domain_suffix example.com"},
		{"all hold", Query{Name: "both.test", Addr: a("192.0.2.1"), Process: "/bin/both"}, "direct rule 8: domain both.test"},
		{"one fails", Query{Name: "both.test", Addr: a("192.0.3.1"), Process: "/bin/both"}, "auto default"},
		{"one unknown", Query{Name: "both.test", Process: "/bin/both"}, "auto default"},
		{"nothing known", Query{}, "auto default"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := set.Match(tt.q)
			if got := v.String() + " " + v.Rule; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	deep := strings.Repeat("x.", 80) + "example.org"
	long := mustCompile(t, []Rule{{DomainSuffix: []string{"example.org", deep}, Via: "block"}})
	for name, want := range map[string]string{"y." + deep: "rule 1: domain_suffix " + deep, deep[2:]: "rule 1: domain_suffix example.org", "org": "default"} {
		if v := long.Match(Query{Name: name}); v.Rule != want {
			t.Errorf("%s: %q", name, v.Rule)
		}
	}
	if !set.NeedsProcess() {
		t.Error("NeedsProcess is false")
	}
}

func TestNilSetIsDefault(t *testing.T) {
	var s *Set
	if v := s.Match(Query{Name: "a"}); v.Kind != flow.Auto || v.Rule != "default" || s.NeedsProcess() {
		t.Error(v, s.NeedsProcess())
	}
}

func TestCompileErrors(t *testing.T) {
	ok := Rule{Domain: []string{"a.test"}, Via: "auto"}
	tests := []struct {
		bad  Rule
		want string
	}{
		{Rule{Via: "direct"}, "rule 2: has no condition"},
		{Rule{Domain: []string{"a"}}, "rule 2: has no via"},
		{Rule{Domain: []string{"a", "*.x.test"}, Via: "auto"}, `rule 2: domain has a wildcard: use domain_suffix`},
		{Rule{Domain: []string{"192.0.2.1"}, Via: "auto"}, `rule 2: domain is an address: use cidr`},
		{Rule{Domain: []string{"2001:db8::a"}, Via: "auto"}, `is an address: use cidr`},
		{Rule{DomainSuffix: []string{"."}, Via: "auto"}, `rule 2: domain_suffix is no name`},
		{Rule{DomainSuffix: []string{"a..b"}, Via: "auto"}, `rule 2: domain_suffix is no name`},
		{Rule{Domain: []string{"http://a/"}, Via: "auto"}, `rule 2: domain is no name`},
		{Rule{Domain: []string{strings.Repeat("a.", 130)}, Via: "auto"}, "longer than 253"},
		{Rule{CIDR: []netip.Prefix{{}}, Via: "auto"}, `rule 2: cidr is not a network`},
		{Rule{Port: []PortRange{{9, 8}}, Via: "auto"}, `rule 2: port is not a range`},
		{Rule{Port: []PortRange{{0, 8}}, Via: "auto"}, `rule 2: port is`},
		{Rule{Process: []string{" "}, Via: "auto"}, `rule 2: process is`},
	}
	for _, tt := range tests {
		_, err := Compile([]Rule{ok, tt.bad})
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), tt.want) || e.Rule != 2 {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// naive is Match without any index: what the product promises.
func naive(list []Rule, q Query) int {
	fold := func(s string) string { return string(foldName(nil, s)) }
	name, addr := fold(q.Name), q.Addr.Unmap().WithZone("")
	path := string(foldProcess(nil, q.Process))
	for i, r := range list {
		ok := true
		if len(r.Domain)+len(r.DomainSuffix) > 0 {
			hit := false
			for _, d := range r.Domain {
				hit = hit || name == fold(d)
			}
			for _, d := range r.DomainSuffix {
				d = fold(strings.TrimPrefix(d, "."))
				hit = hit || name == d || strings.HasSuffix(name, "."+d)
			}
			ok = ok && hit
		}
		if len(r.CIDR) > 0 {
			hit := false
			for _, p := range r.CIDR {
				hit = hit || canonical(p).Contains(addr)
			}
			ok = ok && hit
		}
		if len(r.Port) > 0 {
			hit := false
			for _, p := range r.Port {
				hit = hit || p.From <= q.Port && q.Port <= p.To
			}
			ok = ok && hit
		}
		if len(r.Process) > 0 {
			hit := false
			for _, p := range r.Process {
				p = string(foldProcess(nil, p))
				hit = hit || path != "" && (path == p || string(baseName([]byte(path))) == p)
			}
			ok = ok && hit
		}
		if ok {
			return i + 1
		}
	}
	return 0
}

// gen makes rules and queries out of few values, so that they often meet.
type gen struct {
	data []byte
}

func (g *gen) n(limit int) int {
	if len(g.data) == 0 {
		return 0
	}
	b := g.data[0]
	g.data = g.data[1:]
	return int(b) % limit
}

func pick[T any](g *gen, from []T) (out []T) {
	for range g.n(3) {
		out = append(out, from[g.n(len(from))])
	}
	return out
}

var (
	genNames    = []string{"a", "b.a", "c.b.a", "A.", "x.a", "bücher.a", "xn--bcher-kva.a", "c.b", "r3---sn.a"}
	genPrefixes = pfx("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::ffff:10.2.0.0/112", "::/0", "2001:db8::/32", "2001:db8::1/128", "255.255.255.255/32")
	genAddrs    = []netip.Addr{{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.1.9.9"), netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("::ffff:10.9.0.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("fe80::1%x"), netip.MustParseAddr("255.255.255.255")}
	genPorts    = []PortRange{{1, 65535}, {80, 80}, {81, 90}, {443, 443}, {85, 443}, {65535, 65535}}
	genProcs    = []string{"curl", "/usr/bin/curl", "Firefox", `c:\x\firefox`}
)

func (g *gen) rules() []Rule {
	list := make([]Rule, 1+g.n(12))
	for i := range list {
		r := &list[i]
		*r = Rule{pick(g, genNames), pick(g, genNames), pick(g, genPrefixes), pick(g, genPorts), pick(g, genProcs), "direct"}
		if len(r.Domain)+len(r.DomainSuffix)+len(r.CIDR)+len(r.Port)+len(r.Process) == 0 {
			r.Port = genPorts[1:2]
		}
	}
	return list
}

func FuzzMatchAgainstNaive(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz"))
	f.Add([]byte{5, 1, 0, 1, 1, 0, 1, 2, 0, 1, 1, 2, 2, 0, 1, 1, 1, 0, 0, 0, 1, 1, 2, 2})
	for i := range 40 {
		b := make([]byte, 200)
		for j := range b {
			b[j] = byte(i*131 + j*j*7 + j*i)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := gen{data}
		list := g.rules()
		set, err := Compile(list)
		if err != nil {
			t.Fatal(err)
		}
		for len(g.data) > 0 {
			q := Query{
				Name: genNames[g.n(len(genNames))], Addr: genAddrs[g.n(len(genAddrs))],
				Port:    []uint16{0, 80, 84, 85, 443, 444, 65535}[g.n(7)],
				Process: []string{"", "/usr/bin/CURL", "/x/curl", `C:\x\Firefox`}[g.n(4)],
			}
			if g.n(2) == 0 {
				q.Name = ""
			}
			want, got := naive(list, q), set.Match(q).Rule
			if want == 0 && got != "default" || want > 0 && !strings.HasPrefix(got, fmt.Sprintf("rule %d:", want)) {
				t.Fatalf("%+v\n%+v: got %q, want rule %d", list, q, got, want)
			}
		}
	})
}

func FuzzCompileName(f *testing.F) {
	for _, s := range []string{"example.com", "bücher.de", "*.a", "xn--", "a。b", "1.2.3.4", "\xff", "ı.com", "-a-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := Compile([]Rule{{Domain: []string{s}, DomainSuffix: []string{s}, Via: "block"}})
		if err != nil {
			return
		}
		if v := set.Match(Query{Name: s}); v.Kind != flow.Block {
			t.Errorf("rule for %q does not match it: %v", s, v)
		}
	})
}
