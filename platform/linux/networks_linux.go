package linux

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// The networks of this machine are told apart by interface:
//
//	uplink  leads to the Internet, or strangers configure it: it holds a route as
//	        wide as a default one, or an address on lease (DHCP, SLAAC)
//	other   has routes of its own and is no uplink: another tunnel, the bridge of
//	        containers, a second LAN whose address was set here
//
// Routes of the others win over the TUN, as an administrator or a program of
// this machine has made them. Those of an uplink never do: whoever answers its
// DHCP requests could take any address out of the TUN (option 121: TunnelVision,
// CVE-2024-3661). What others send by an uplink to be forwarded is refused
// (gate_linux.go), while containers are carried.
//
// The routes of others are copied to our table, one by one. A rule that leads to
// the main table would let an uplink's narrower route win inside theirs; and a
// copy goes with its device in the same moment, so that nothing of theirs leaves
// by the uplink afterwards.

const (
	maxOthers = 1024 // routes of others that are followed
	// wider than these a route stands for the whole Internet, as the halves do
	// that VPNs make: 10.0.0.0/8 and fc00::/7 are networks.
	narrowest4, narrowest6 = 8, 7
)

// networks are the machine's, without the TUN and loopback.
type networks struct {
	uplinks []string // sorted
	others  []op     // copies for our table, by destination
	more    int      // routes of others beyond maxOthers
}

// lookAround tells the machine's networks apart.
func lookAround(tun string) (networks, error) {
	var n networks
	names, err := interfaces(tun)
	if err != nil {
		return n, err
	}
	uplinks, err := leased()
	if err != nil {
		return n, err
	}
	routes := make(map[int][]netlink.Route)
	for _, family := range families() {
		all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: tableMain}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return n, fmt.Errorf("list the main table: %w", err)
		}
		for _, r := range all {
			if r.Type != unix.RTN_UNICAST {
				continue
			}
			routes[family] = append(routes[family], r)
			for _, hop := range hops(r) {
				uplinks[hop.LinkIndex] = uplinks[hop.LinkIndex] || isWide(r.Dst, family)
			}
		}
	}
	for index, name := range names {
		if uplinks[index] {
			n.uplinks = append(n.uplinks, name)
			delete(names, index)
		}
	}
	slices.Sort(n.uplinks)
	for _, family := range families() {
		n.others = append(n.others, copies(routes[family], names)...)
	}
	n.more = max(0, len(n.others)-maxOthers)
	n.others = n.others[:len(n.others)-n.more]
	return n, nil
}

// interfaces are the names of those that are up, by index, without the TUN and
// loopback.
func interfaces(tun string) (map[int]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		if a := l.Attrs(); a.Name != tun && a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 {
			names[a.Index] = a.Name
		}
	}
	return names, nil
}

// leased are the interfaces, by index, that have an address for a while only:
// somebody on their link has given it to them.
func leased() (map[int]bool, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	on := make(map[int]bool)
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_PERMANENT == 0 {
			on[a.LinkIndex] = true
		}
	}
	return on, nil
}

// hops are the ways of a route: one, or several that share the load.
func hops(r netlink.Route) []*netlink.NexthopInfo {
	if len(r.MultiPath) > 0 {
		return r.MultiPath
	}
	return []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via}}
}

func isWide(dst *net.IPNet, family int) bool {
	ones := 0
	if dst != nil {
		ones, _ = dst.Mask.Size()
	}
	return family == unix.AF_INET && ones < narrowest4 || family == unix.AF_INET6 && ones < narrowest6
}

// copies makes of the routes by the interfaces named what our table is to have:
// the first of several to a destination, by metric.
func copies(routes []netlink.Route, names map[int]string) []op {
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	var ops []op
	seen := make(map[netip.Prefix]bool)
	for _, r := range routes {
		hop := hops(r)[0]
		to := prefixOf(r.Dst)
		name, ok := names[hop.LinkIndex]
		if !ok || !to.IsValid() || seen[to] || to.Addr().IsLinkLocalUnicast() || to.Addr().IsMulticast() {
			continue
		}
		seen[to] = true
		o := op{Kind: opRoute, Family: 4, Table: tableOwn, Dev: name, To: to}
		if to.Addr().Is6() {
			o.Family = 6
		}
		o.Gateway, o.Src = addrOf(hop.Gw), addrOf(r.Src)
		if via, ok := hop.Via.(*netlink.Via); ok {
			o.Gateway = addrOf(via.Addr)
		}
		ops = append(ops, o)
	}
	slices.SortFunc(ops, func(a, b op) int { return a.To.Compare(b.To) })
	return ops
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// other tells the others by interface, for people.
func (n networks) other() []platform.Network {
	var all []platform.Network
	for _, o := range n.others {
		i := slices.IndexFunc(all, func(x platform.Network) bool { return x.Interface == o.Dev })
		if i < 0 {
			i = len(all)
			all = append(all, platform.Network{Interface: o.Dev})
		}
		all[i].Prefixes = append(all[i].Prefixes, o.To)
	}
	slices.SortFunc(all, func(a, b platform.Network) int { return cmp.Compare(a.Interface, b.Interface) })
	return all
}
