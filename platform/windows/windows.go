// Package windows is Windows' network: a Wintun adapter with a fixed identity,
// routes, resolver and metric on that adapter, sockets tied to the physical
// interface.
//
//	NetConfig ─┐
//	facts ─────┴─► plan ─► operations ─► diff with what is there ─► IP Helper API, one call each
//	               (pure, any system)                               (host_windows.go)
//
// Every operation is on our own adapter, which Windows removes with everything
// on it when the process that made it ends, however it ends. So there is nothing
// to journal and no snapshot to write back. The one thing that stays is the
// registry's list of resolvers for the adapter's identity: OpenTUN clears it
// before the adapter is used again.
//
// The files without an OS suffix are pure, so that their golden tests run
// everywhere. Only app/atlanticd imports this package.
package windows

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// facts are what plan must know about the machine.
type facts struct {
	LAN []netip.Prefix // attached private subnets
	DNS []netip.Addr   // the resolvers it had
}

// verb says which call an operation is.
type verb string

const (
	setInterface verb = "interface" // metric 0 and MTU, of one family
	addAddress   verb = "address"
	addRoute     verb = "route" // on-link, metric 0
	setDNS       verb = "dns"   // of one family
)

// operation is one thing that the adapter is to have.
type operation struct {
	Verb   verb
	Prefix netip.Prefix // of addAddress, addRoute
	Six    bool         // the family
	MTU    int          // of setInterface
	DNS    []netip.Addr // of setDNS
}

func (o operation) String() string {
	words := []string{string(o.Verb)}
	if o.Prefix.IsValid() {
		words = append(words, o.Prefix.String())
	} else if o.Six {
		words = append(words, "ipv6")
	} else {
		words = append(words, "ipv4")
	}
	if o.MTU > 0 {
		words = append(words, "metric 0 mtu", strconv.Itoa(o.MTU))
	}
	for _, a := range o.DNS {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

func (o operation) equal(x operation) bool {
	return o.Verb == x.Verb && o.Prefix == x.Prefix && o.Six == x.Six && o.MTU == x.MTU && slices.Equal(o.DNS, x.DNS)
}

// planTUN returns what makes a fresh adapter usable. Windows adds the on-link
// route of an address by itself. The resolvers are what an earlier adapter of
// this identity may have left: none.
func planTUN(cfg platform.TUNConfig) []operation {
	var ops []operation
	for _, p := range []netip.Prefix{cfg.Addr4, cfg.Addr6} {
		if p.IsValid() {
			six := p.Addr().Is6()
			ops = append(ops,
				operation{Verb: setDNS, Six: six},
				operation{Verb: setInterface, Six: six, MTU: cfg.MTU},
				operation{Verb: addAddress, Prefix: p, Six: six})
		}
	}
	return ops
}

// plan returns the operations that make the machine match cfg, in order. The
// halves of the address space win over the machine's own default route whatever
// the metrics are.
func plan(cfg platform.NetConfig, f facts) []operation {
	if cfg.TUN == "" {
		return nil
	}
	var ops []operation
	route := func(prefixes ...netip.Prefix) {
		for _, p := range prefixes {
			o := operation{Verb: addRoute, Prefix: p, Six: p.Addr().Is6()}
			if !slices.ContainsFunc(ops, o.equal) {
				ops = append(ops, o)
			}
		}
	}
	taken := func(a netip.Addr) bool {
		return !a.IsLinkLocalUnicast() && (cfg.Default4 && a.Is4() || cfg.Default6 && a.Is6())
	}
	if cfg.Default4 {
		route(physical.Halves(netip.PrefixFrom(netip.IPv4Unspecified(), 0))...)
	}
	if cfg.Default6 {
		route(physical.Halves(netip.PrefixFrom(netip.IPv6Unspecified(), 0))...)
	}
	for _, p := range f.LAN {
		switch {
		case !taken(p.Addr()):
		case !cfg.LAN: // on-link routes would win: outbid them too
			route(physical.Halves(p)...)
		case len(cfg.DNS) > 0:
			// A resolver inside the LAN would be asked directly. Its traffic
			// enters the TUN; what is not DNS leaves again as LAN traffic does.
			for _, a := range f.DNS {
				if p.Contains(a) {
					route(netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	for _, six := range []bool{false, true} {
		var servers []netip.Addr
		for _, a := range cfg.DNS {
			if a.Is6() == six {
				servers = append(servers, a)
			}
		}
		if len(servers) > 0 {
			ops = append(ops, operation{Verb: setDNS, Six: six, DNS: servers})
		}
	}
	return ops
}
