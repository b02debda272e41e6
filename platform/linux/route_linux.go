package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

const (
	maxLAN       = 64 // attached subnets that are tracked
	maxListening = 64 // ports that are excepted without nftables
	// protoOwn marks our rules and routes (`proto 65` in iproute2's output), so
	// that those of others between our priorities are never taken for ours.
	protoOwn = 65
)

// gather looks at the machine for plan.
func (h *Host) gather(cfg platform.NetConfig) (facts, error) {
	f := facts{
		IPv6: hasIPv6(), TUN6: takesIPv6(cfg.TUN), Loopback6: takesIPv6("lo"),
		StrictRP: h.strictRP(cfg.TUN),
	}
	f.NFT = !h.system.noNFT && hasNFT()
	if !f.NFT {
		f.Listening = listeningPorts()
	}
	around, err := lookAround(cfg.TUN)
	if err != nil {
		return f, fmt.Errorf("look at the networks of this machine: %w", err)
	}
	f.Uplinks, f.Others, f.More = around.uplinks, around.others, around.more
	if f.Links, err = linkLocals(cfg.TUN); h.system.noLinkDNS {
		f.Links = nil
	} else if err != nil {
		return f, fmt.Errorf("list the link-local addresses: %w", err)
	}
	if f.LAN, _, err = attached(cfg.TUN); err != nil {
		return f, fmt.Errorf("list the attached subnets: %w", err)
	}
	if len(cfg.DNS) > 0 {
		f.DNS = h.dnsInForce()
		if f.DNS == dnsNone {
			f.DNS = h.detectDNS()
		}
	}
	return f, nil
}

// hasIPv6 tells whether the kernel has IPv6. Whether it is used is each
// interface's own affair (takesIPv6): conf/all/disable_ipv6 is no summary but a
// way to write to all of them, and says nothing of what was switched since.
func hasIPv6() bool { return slices.Contains(families(), unix.AF_INET6) }

// takesIPv6 tells whether IPv6 is switched on at an interface.
func takesIPv6(name string) bool {
	v, err := readSysctl("net/ipv6/conf/" + name + "/disable_ipv6")
	return err == nil && v == "0"
}

// usesIPv6 tells whether IPv6 is switched on at any interface but the TUN, or
// will be at those to come ("default").
func usesIPv6(tun string) bool {
	entries, _ := os.ReadDir("/proc/sys/net/ipv6/conf")
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return e.Name() != tun && e.Name() != "all" && takesIPv6(e.Name())
	})
}

// strictRP lists the interfaces that drop packets whose way back is another
// interface: strict by their own setting or by that of "all", whichever is
// greater. Those that we made loose ourselves stay in the list.
func (h *Host) strictRP(tun string) []string {
	var names []string
	for _, e := range h.journal.pending {
		if e.Op.Kind == opSysctl && strings.HasSuffix(e.Op.Key, "/rp_filter") {
			names = append(names, filepath.Base(filepath.Dir(e.Op.Key)))
		}
	}
	entries, _ := os.ReadDir("/proc/sys/net/ipv4/conf")
	for _, e := range entries {
		name := e.Name()
		if name == tun || name == "lo" || name == "default" || slices.Contains(names, name) {
			continue
		}
		if v, err := readSysctl("net/ipv4/conf/" + name + "/rp_filter"); err == nil && v == "1" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// attached lists the private subnets on the links of this machine, and its
// addresses there, both sorted.
func attached(tun string) (lan []netip.Prefix, self []netip.Addr, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, err
	}
	usable := make(map[int]bool, len(links))
	for _, l := range links {
		a := l.Attrs()
		usable[a.Index] = a.Name != tun && a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range addrs {
		if !usable[a.LinkIndex] {
			continue
		}
		if p := prefixOf(a.IPNet); p.IsValid() {
			self = append(self, p.Addr())
		}
		onLink := a.IPNet
		if a.Peer != nil {
			onLink = a.Peer
		}
		if p, ok := physical.PrivateSubnet(prefixOf(onLink)); ok {
			lan = append(lan, p)
		}
	}
	slices.SortFunc(lan, netip.Prefix.Compare)
	lan = slices.Compact(lan)
	slices.SortFunc(self, netip.Addr.Compare)
	return lan[:min(len(lan), maxLAN)], slices.Compact(self), nil
}

// prefixOf is n in the form of netip, invalid if it is not one.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if ip = ip.Unmap(); bits != ip.BitLen() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(ip, ones)
}

// uplinkOf finds the default route of a family in the main table, lowest metric
// first, and returns the index of its link.
func uplinkOf(family int, tun string) (index int, ok bool) {
	filter := &netlink.Route{Table: tableMain}
	routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	if err != nil {
		return 0, false
	}
	best := -1
	for _, r := range routes {
		if !isDefault(r.Dst) || r.Type != unix.RTN_UNICAST {
			continue
		}
		i := r.LinkIndex
		if len(r.MultiPath) > 0 {
			i = r.MultiPath[0].LinkIndex
		}
		if i == 0 || (best >= 0 && r.Priority >= best) {
			continue
		}
		if l, err := netlink.LinkByIndex(i); err == nil && l.Attrs().Name != tun {
			best, index, ok = r.Priority, i, true
		}
	}
	return index, ok
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

// look describes the physical network as it is now.
func (h *Host) look() platform.NetChange {
	tun := h.cfg.TUN
	var c platform.NetChange
	i4, has4 := uplinkOf(netlink.FAMILY_V4, tun)
	i6, has6 := uplinkOf(netlink.FAMILY_V6, tun)
	c.Has4, c.Has6, c.Up = has4, has6, has4 || has6
	index := i4
	if !has4 {
		index = i6
	}
	if c.Up {
		if l, err := netlink.LinkByIndex(index); err == nil {
			c.Interface = l.Attrs().Name
		}
	}
	lan, self, err := attached(tun)
	if err != nil {
		h.log.Warn("cannot list the attached subnets", "error", err)
	}
	c.LAN, c.Self = lan, self
	around, err := lookAround(tun)
	if err != nil {
		h.log.Warn("cannot tell the networks of this machine apart", "error", err)
	}
	c.Others = around.other()
	c.DNS, c.Search = h.formerServers(), h.searchDomains()
	return c
}

func netlinkRule(o op) *netlink.Rule {
	r := netlink.NewRule()
	r.Family = unix.AF_INET
	if o.Family == 6 {
		r.Family = unix.AF_INET6
	}
	r.Priority, r.Table, r.Protocol = o.Pref, o.Table, protoOwn
	if o.Table == 0 {
		r.Type = unix.RTN_UNREACHABLE // FR_ACT_UNREACHABLE
	}
	switch {
	case o.Mark:
		mask := markMask
		r.Mark, r.Mask = mark, &mask
	case o.Unmarked:
		mask := ^uint32(0)
		r.Mask = &mask
	}
	if o.Forward {
		r.Invert, r.IifName = true, "lo"
	}
	if o.From.IsValid() {
		r.Src = ipNet(o.From)
	}
	if o.To.IsValid() {
		r.Dst = ipNet(o.To)
	}
	switch o.Proto {
	case "tcp":
		r.IPProto = unix.IPPROTO_TCP
	case "udp":
		r.IPProto = unix.IPPROTO_UDP
	}
	if o.Sport != 0 {
		r.Sport = netlink.NewRulePortRange(o.Sport, o.Sport)
	}
	if o.Dport != 0 {
		r.Dport = netlink.NewRulePortRange(o.Dport, o.Dport)
	}
	return r
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addRule(o op) error {
	if err := netlink.RuleAdd(netlinkRule(o)); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func deleteRule(o op) error {
	err := netlink.RuleDel(netlinkRule(o))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	return err
}

// netlinkRoute is o with the index of its device. A default route has scope
// global. With scope link, the usual one for a route without a gateway, the
// kernel takes it as the way to gateways: `ip route add default via GATEWAY` would
// then lead into the TUN while the gateway's subnet is not attached (seen on Linux
// 6.18, November 2026).
func netlinkRoute(o op, index int) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: index, Dst: ipNet(o.destination()), Table: o.Table,
		Scope: netlink.SCOPE_UNIVERSE, Protocol: protoOwn, Type: unix.RTN_UNICAST,
	}
	switch {
	case o.Dev == "":
		r.Type = unix.RTN_UNREACHABLE
	case o.Gateway.IsValid() && o.Gateway.Is6() != (o.Family == 6):
		r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: o.Gateway.AsSlice()}
	case o.Gateway.IsValid():
		r.Gw = o.Gateway.AsSlice()
	case o.To.IsValid():
		r.Scope = netlink.SCOPE_LINK
	}
	if o.Gateway.IsValid() {
		r.Flags = int(netlink.FLAG_ONLINK) // the main table has seen that the gateway is there
	}
	if o.Src.IsValid() {
		r.Src = o.Src.AsSlice()
	}
	return r
}

// destination is what a route leads to.
func (o op) destination() netip.Prefix {
	switch {
	case o.To.IsValid():
		return o.To
	case o.Family == 6:
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func addRoute(o op) error {
	index, err := o.index()
	if err != nil {
		return err
	}
	return netlink.RouteReplace(netlinkRoute(o, index))
}

// index is that of a route's device, 0 if it has none.
func (o op) index() (int, error) {
	if o.Dev == "" {
		return 0, nil
	}
	return deviceIndex(o.Dev)
}

func deleteRoute(o op) error {
	index, err := o.index()
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil // the route went with its device
	}
	if err != nil {
		return err
	}
	err = netlink.RouteDel(netlinkRoute(o, index))
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// ruleIn reports whether o is among rules.
func ruleIn(o op, rules []netlink.Rule) bool {
	want := netlinkRule(o)
	return slices.ContainsFunc(rules, func(r netlink.Rule) bool {
		return r.Family == want.Family && r.Priority == want.Priority && r.Table == want.Table &&
			r.Mark == want.Mark && sameMask(r.Mask, want.Mask) && r.IPProto == want.IPProto &&
			r.Invert == want.Invert && r.IifName == want.IifName &&
			sameNet(r.Src, want.Src) && sameNet(r.Dst, want.Dst) && samePorts(r.Sport, want.Sport) && samePorts(r.Dport, want.Dport)
	})
}

func sameNet(a, b *net.IPNet) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.String() == b.String()
}

func sameMask(a, b *uint32) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func samePorts(a, b *netlink.RulePortRange) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// routeIn reports whether o is among routes. A device that is gone has no routes
// to mend.
func routeIn(o op, routes []netlink.Route) bool {
	index, err := o.index()
	if err != nil {
		return errors.As(err, new(netlink.LinkNotFoundError))
	}
	want := netlinkRoute(o, index)
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.Type == want.Type && (r.LinkIndex == index || index == 0) && prefixOf(r.Dst) == prefixOf(want.Dst)
	})
}
