package config

import (
	"fmt"
	"slices"
	"strings"
)

// Group is one [[group]]: several upstreams and providers used as one.
type Group struct {
	Name    string
	Members []string // names of upstreams and providers, in order
	Policy  string   // of Policies
	Weights []int    // of the members, empty or one for each; for policy weighted
}

type rawGroup struct {
	Name    string   `toml:"name"`
	Members []string `toml:"members"`
	Policy  string   `toml:"policy"`
	Weights []int    `toml:"weights"`
}

func validateGroups(src *source, r *raw, c *Config) error {
	for i, rg := range r.Group {
		path := fmt.Sprintf("group[%d]", i)
		if err := c.checkName(src, path, "group", i, rg.Name); err != nil {
			return err
		}
		g := Group(rg)
		if g.Policy == "" {
			g.Policy = "latency"
		}
		if err := oneOf(src, path+".policy", g.Policy, Policies()...); err != nil {
			return err
		}
		if len(g.Members) == 0 {
			return src.fail(path, `members = ["NAME", "NAME"]`, "group %q has no members", g.Name)
		}
		names := c.memberNames()
		for j, m := range g.Members {
			if !slices.Contains(names, m) || slices.Contains(g.Members[:j], m) {
				return src.fail(fmt.Sprintf("%s.members[%d]", path, j), "upstreams (but direct) and providers, each once: "+strings.Join(names[:min(len(names), 12)], ", "),
					"group %q: member %d is none, or there twice", g.Name, j+1)
			}
		}
		if len(g.Weights) > 0 && (len(g.Weights) != len(g.Members) || slices.Min(g.Weights) < 1 || slices.Max(g.Weights) > 1000) {
			return src.fail(path+".weights", "one number from 1 to 1000 for each member", "group %q: weights do not fit the members", g.Name)
		}
		c.Groups = append(c.Groups, g)
	}
	return nil
}

// memberNames are the names of what can be in a group.
func (c *Config) memberNames() (names []string) {
	for _, u := range c.Upstreams {
		if u.URL != "direct://" {
			names = append(names, u.Name)
		}
	}
	for _, p := range c.Providers {
		names = append(names, p.Name)
	}
	return names
}

// Names are the names of all upstreams, providers and groups, in this order;
// the first is in use unless the user chose another.
func (c *Config) Names() (names []string) {
	for _, u := range c.Upstreams {
		names = append(names, u.Name)
	}
	for _, p := range c.Providers {
		names = append(names, p.Name)
	}
	for _, g := range c.Groups {
		names = append(names, g.Name)
	}
	return names
}

// checkName refuses a name that is no name or taken.
func (c *Config) checkName(src *source, path, what string, i int, name string) error {
	if err := checkUpstreamName(name); err != nil {
		return src.fail(path+".name", "a short word such as \"office\"", "%s %d: %v", what, i+1, err)
	}
	if slices.ContainsFunc(c.Names(), func(n string) bool { return strings.EqualFold(n, name) }) { // or a typing error chooses another
		return src.fail(path+".name", "give each its own name", "%s %d has the name %q, which is taken", what, i+1, name)
	}
	return nil
}

func (g Group) fields() []field {
	out := []field{{"name", Quote(g.Name)}, {"members", quoteList(g.Members)}, {"policy", Quote(g.Policy)}}
	if len(g.Weights) > 0 {
		out = append(out, field{"weights", numbers(g.Weights)})
	}
	return out
}
