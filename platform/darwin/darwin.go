// Package darwin is macOS's network: a utun device, split default routes, the
// resolver by scutil, sockets bound to the physical interface.
//
//	NetConfig ─┐
//	facts ─────┴─► plan ─► objects ─► diff with what is there ─► journal ─► ifconfig, route, scutil
//	               (pure, any system)                                       (host_darwin.go)
//
// Addresses and routes belong to the utun device and go away with the process;
// the resolver's key outlives it, which is what the journal is for. What other
// programs made is never touched, so there is no snapshot to write back.
//
// The files without an OS suffix are pure, so that their golden tests run
// everywhere. Only app/atlanticd imports this package.
package darwin

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// Tools by absolute path: the service runs as root and must not search PATH.
const (
	ifconfigPath = "/sbin/ifconfig"
	routePath    = "/sbin/route"
	scutilPath   = "/usr/sbin/scutil"
)

// dnsKey is our own service in the dynamic store; nobody else's key is written.
const dnsKey = "State:/Network/Service/atlantic/DNS"

// facts are what plan must know about the machine.
type facts struct {
	LAN []netip.Prefix // attached private subnets
}

// object is one thing that we add to the machine. Either a route into the TUN
// or the resolver.
type object struct {
	Route netip.Prefix `json:"route,omitzero"`
	TUN   string       `json:"tun,omitempty"`
	DNS   []netip.Addr `json:"dns,omitempty"`
}

// command is one run of a tool.
type command struct {
	Args  []string
	Stdin string
}

func (c command) String() string {
	s := strings.Join(c.Args, " ")
	if c.Stdin != "" {
		s += " <<\n  " + strings.ReplaceAll(strings.TrimSuffix(c.Stdin, "\n"), "\n", "\n  ")
	}
	return s
}

// planTUN returns what makes a fresh utun device usable: MTU, addresses and
// their on-link prefixes.
func planTUN(name string, cfg platform.TUNConfig) []command {
	cmds := []command{{Args: []string{ifconfigPath, name, "mtu", fmt.Sprint(cfg.MTU), "up"}}}
	if p := cfg.Addr4; p.IsValid() {
		a := p.Addr().String() // a point-to-point device wants both ends
		cmds = append(cmds, command{Args: []string{ifconfigPath, name, "inet", a + "/32", a, "alias"}})
		cmds = append(cmds, object{Route: p.Masked(), TUN: name}.add())
	}
	if p := cfg.Addr6; p.IsValid() {
		cmds = append(cmds, command{Args: []string{ifconfigPath, name, "inet6", p.Addr().String() + "/128", "alias"}})
		cmds = append(cmds, object{Route: p.Masked(), TUN: name}.add())
	}
	return cmds
}

// plan returns the objects that make the machine match cfg, in the order in
// which they are to be added. The halves of the address space win over the
// machine's own default route without replacing it.
func plan(cfg platform.NetConfig, f facts) []object {
	if cfg.TUN == "" {
		return nil
	}
	var objects []object
	route := func(prefixes ...netip.Prefix) {
		for _, p := range prefixes {
			objects = append(objects, object{Route: p, TUN: cfg.TUN})
		}
	}
	if cfg.Default4 {
		route(physical.Halves(netip.PrefixFrom(netip.IPv4Unspecified(), 0))...)
	}
	if cfg.Default6 {
		route(physical.Halves(netip.PrefixFrom(netip.IPv6Unspecified(), 0))...)
	}
	if !cfg.LAN { // on-link routes would win: outbid them too
		for _, p := range f.LAN {
			if taken := cfg.Default4 && p.Addr().Is4() || cfg.Default6 && p.Addr().Is6(); taken && !p.Addr().IsLinkLocalUnicast() {
				route(physical.Halves(p)...)
			}
		}
	}
	if len(cfg.DNS) > 0 {
		objects = append(objects, object{DNS: slices.Clone(cfg.DNS)})
	}
	return objects
}

func (o object) equal(x object) bool {
	return o.Route == x.Route && o.TUN == x.TUN && slices.Equal(o.DNS, x.DNS)
}

// outlives says whether o is still there when the process and its utun are not.
func (o object) outlives() bool { return len(o.DNS) > 0 }

func (o object) add() command {
	if len(o.DNS) > 0 {
		return command{Args: []string{scutilPath}, Stdin: dnsScript(o.DNS)}
	}
	return o.routeCommand("add")
}

func (o object) remove() command {
	if len(o.DNS) > 0 {
		return command{Args: []string{scutilPath}, Stdin: "remove " + dnsKey + "\nquit\n"}
	}
	return o.routeCommand("delete")
}

func (o object) routeCommand(verb string) command {
	family := "-inet"
	if o.Route.Addr().Is6() {
		family = "-inet6"
	}
	return command{Args: []string{routePath, "-n", verb, family, o.Route.String(), "-interface", o.TUN}}
}

// dnsScript makes our resolver the one for every name: a supplemental resolver
// whose match domain is empty, as a VPN configuration has it. The machine's own
// resolvers stay where they are and are back when the key is removed.
func dnsScript(servers []netip.Addr) string {
	var b strings.Builder
	b.WriteString("d.init\nd.add ServerAddresses *")
	for _, s := range servers {
		b.WriteString(" " + s.String())
	}
	b.WriteString("\nd.add SupplementalMatchDomains * \"\"\nset " + dnsKey + "\nquit\n")
	return b.String()
}
