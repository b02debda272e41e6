package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Error tells which rule is wrong, and what in it; its text does not quote Value.
type Error struct {
	Rule  int    // counted from 1
	Key   string // "domain", "cidr", "via" …; "" if it is the rule as a whole
	Index int    // of Value in that list
	Value string
	Err   error
}

func (e *Error) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("rule %d: %v", e.Rule, e.Err)
	}
	return fmt.Sprintf("rule %d: %s %v", e.Rule, e.Key, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// builder gathers the indexes while Compile goes through the rules in order.
type builder struct {
	set   *Set
	nets  map[netip.Prefix][]candidate
	ports []portEntry
}

// Compile checks the rules and builds their indexes. Names of upstreams are
// not checked: only the caller knows them. The error is an *Error.
func Compile(list []Rule) (*Set, error) {
	b := builder{
		set: &Set{
			rules:   make([]compiled, 0, len(list)),
			domain:  map[string][]candidate{},
			suffix:  map[string][]candidate{},
			process: map[string][]candidate{},
		},
		nets: map[netip.Prefix][]candidate{},
	}
	for i := range list {
		if err := b.add(i, &list[i]); err != nil {
			return nil, err
		}
	}
	b.set.nets = newPrefixIndex(b.nets)
	b.set.ports = newPortIndex(b.ports)
	return b.set, nil
}

// add compiles one rule and enters it in the index of its first kind of
// condition, in the order name, address, process, port.
func (b *builder) add(i int, r *Rule) error {
	number := i + 1
	c, err := verdictOf(number, r.Via)
	if err != nil {
		return err
	}
	domains, err := names(number, "domain", r.Domain)
	if err != nil {
		return err
	}
	suffixes, err := names(number, "domain_suffix", r.DomainSuffix)
	if err != nil {
		return err
	}
	nets, err := prefixes(number, r.CIDR)
	if err != nil {
		return err
	}
	processes, err := processNames(number, r.Process)
	if err != nil {
		return err
	}
	if err := checkPorts(number, r.Port); err != nil {
		return err
	}
	b.set.needsProcess = b.set.needsProcess || len(processes) > 0

	byName := len(domains)+len(suffixes) > 0
	byNet := !byName && len(nets) > 0
	byProcess := !byName && !byNet && len(processes) > 0
	byPort := !byName && !byNet && !byProcess && len(r.Port) > 0
	if !byName && !byNet && !byProcess && !byPort {
		return &Error{Rule: number, Err: errors.New("has no condition: give domain, domain_suffix, cidr, port or process")}
	}
	c.named = byName || len(nets) > 0
	if !byNet && len(nets) > 0 {
		c.nets = members(nets)
	}
	if !byProcess && len(processes) > 0 {
		c.process = make(map[string]struct{}, len(processes))
		for _, p := range processes {
			c.process[p] = struct{}{}
		}
	}
	if !byPort {
		c.ports = mergePorts(r.Port)
	}
	b.set.rules = append(b.set.rules, c)
	b.index(i, r, domains, suffixes, nets, processes)
	return nil
}

// index enters rule i where add has decided.
func (b *builder) index(i int, r *Rule, domains, suffixes []string, nets []netip.Prefix, processes []string) {
	c := func(key, value string) candidate {
		return candidate{int32(i), "rule " + strconv.Itoa(i+1) + ": " + key + " " + value}
	}
	switch {
	case len(domains)+len(suffixes) > 0:
		for _, d := range domains {
			b.set.domain[d] = b.push(b.set.domain[d], c("domain", d))
		}
		for _, d := range suffixes {
			b.set.depths |= depth(strings.Count(d, "."))
			b.set.suffix[d] = b.push(b.set.suffix[d], c("domain_suffix", d))
		}
	case len(nets) > 0:
		for _, p := range nets {
			b.nets[p] = b.push(b.nets[p], c("cidr", p.String()))
		}
	case len(processes) > 0:
		for _, p := range processes {
			b.set.process[p] = b.push(b.set.process[p], c("process", p))
		}
	default:
		for _, p := range r.Port {
			text := strconv.Itoa(int(p.From))
			if p.From != p.To {
				text += "-" + strconv.Itoa(int(p.To))
			}
			b.ports = append(b.ports, portEntry{p, c("port", text)})
		}
	}
}

// push appends c unless an earlier candidate always wins or is the same rule.
func (b *builder) push(list []candidate, c candidate) []candidate {
	if n := len(list); n > 0 {
		last := list[n-1].rule
		if last == c.rule || b.set.rules[last].open() {
			return list
		}
	}
	return append(list, c)
}

func verdictOf(number int, via string) (compiled, error) {
	switch via {
	case "":
		return compiled{}, &Error{Rule: number, Err: errors.New("has no via: give auto, direct, block or an upstream's name")}
	case "auto":
		return compiled{kind: flow.Auto}, nil
	case "direct":
		return compiled{kind: flow.Direct}, nil
	case "block":
		return compiled{kind: flow.Block}, nil
	}
	return compiled{kind: flow.Via, upstream: via}, nil
}

func names(number int, key string, in []string) ([]string, error) {
	out := make([]string, 0, len(in))
	for i, s := range in {
		value := s
		if key == "domain_suffix" {
			value = strings.TrimPrefix(s, ".")
		}
		name, err := parseName(value)
		if err != nil {
			return nil, &Error{number, key, i, s, err}
		}
		out = append(out, name)
	}
	return out, nil
}

func prefixes(number int, in []netip.Prefix) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(in))
	for i, p := range in {
		if !p.IsValid() {
			return nil, &Error{number, "cidr", i, p.String(), errors.New("is not a network such as 192.0.2.0/24")}
		}
		out = append(out, canonical(p))
	}
	return out, nil
}

func members(nets []netip.Prefix) *prefixIndex {
	set := make(map[netip.Prefix][]candidate, len(nets))
	for _, p := range nets {
		set[p] = nil
	}
	x := newPrefixIndex(set)
	return &x
}

func processNames(number int, in []string) ([]string, error) {
	out := make([]string, 0, len(in))
	for i, s := range in {
		if strings.TrimSpace(s) == "" || strings.ContainsRune(s, 0) {
			return nil, &Error{number, "process", i, s, errors.New("is not a program's name or path")}
		}
		out = append(out, string(foldProcess(nil, s)))
	}
	return out, nil
}

func checkPorts(number int, in []PortRange) error {
	for i, p := range in {
		if p.From == 0 || p.From > p.To {
			return &Error{number, "port", i, fmt.Sprintf("%d-%d", p.From, p.To), errors.New("is not a range of ports from 1 to 65535")}
		}
	}
	return nil
}
