package linux

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// nobodysMark is looked up with for the way that packets would take without us.
const nobodysMark = 0x7fe10000

// elsewhere are addresses that lie in the Internet for every machine. They are
// only looked up, nothing is sent there.
func elsewhere() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2606:4700:4700::1111")}
}

// notice looks at what has come of cfg and finds what works less well than it
// could: what others have done on this machine may be stronger.
func (h *Host) notice(cfg platform.NetConfig, f facts) {
	var found []string
	if !f.NFT {
		found = append(found, "the kernel has no nftables: of connections that come in from outside, only TCP keeps its interface; the TUN's address answers neighbours, and what they send for this machine to forward is carried")
	}
	if cfg.LinkDNS != 0 && (!f.NFT || h.system.noLinkDNS) {
		found = append(found, "this kernel cannot take queries to link-local resolvers (fe80::…) to us: they leave by their interface")
	}
	if f.More > 0 {
		found = append(found, fmt.Sprintf("%d routes of other networks are not followed; %d are", f.More, len(f.Others)))
	}
	ranges := slices.Clone(f.LAN)
	for _, o := range f.Others {
		ranges = append(ranges, o.To)
	}
	slices.SortFunc(ranges, netip.Prefix.Compare)
	for _, p := range slices.Compact(ranges) {
		if p.Overlaps(cfg.Addr4) {
			found = append(found, fmt.Sprintf("this machine's network %s and the fake addresses in %s are in each other's way; choose another [dns] fake_range", p, cfg.Addr4.Masked()))
		}
	}
	for _, a := range elsewhere() {
		if a.Is4() && cfg.Default4 || a.Is6() && cfg.Default6 && f.TUN6 {
			found = append(found, h.tunnels(cfg.TUN, a)...)
		}
	}
	slices.Sort(found)
	h.lackMu.Lock()
	defer h.lackMu.Unlock()
	h.found = slices.Compact(found)
}

// tunnels tells of another tunnel that takes everything, or has us in it.
func (h *Host) tunnels(tun string, to netip.Addr) (found []string) {
	if first, err := wayTo(to, 0); err == nil && first.Attrs().Name != tun {
		found = append(found, fmt.Sprintf("what apps send leaves by %s, not through AtlanticProxy: a policy rule of another program comes before ours; end that program, or AtlanticProxy", first.Attrs().Name))
	}
	own, err := wayTo(to, mark)
	if err != nil || own.Attrs().Name == tun {
		return found
	}
	if isTunnel(own) {
		found = append(found, fmt.Sprintf("the upstream is reached through %s, another tunnel; unless its program marks its own packets, they come back to AtlanticProxy: let it go direct by a [[rule]]", own.Attrs().Name))
	} else if without, err := wayTo(to, nobodysMark); err == nil && isTunnel(without) && without.Attrs().Name != tun {
		found = append(found, fmt.Sprintf("AtlanticProxy comes before %s, another tunnel that takes everything: nothing of what is carried goes through it", without.Attrs().Name))
	}
	return found
}

// wayTo is the device that a packet with that mark takes to an address.
func wayTo(to netip.Addr, mark uint32) (netlink.Link, error) {
	routes, err := netlink.RouteGetWithOptions(net.IP(to.AsSlice()), &netlink.RouteGetOptions{Mark: mark})
	if err != nil {
		return nil, err
	}
	if len(routes) == 0 {
		return nil, fmt.Errorf("no route to %s", to)
	}
	return netlink.LinkByIndex(routes[0].LinkIndex)
}

// isTunnel tells whether a program or the kernel encloses in packets of this
// machine what leaves by link. (PPPoE and taps do not.)
func isTunnel(link netlink.Link) bool {
	if t, ok := link.(*netlink.Tuntap); ok {
		return t.Mode == netlink.TUNTAP_MODE_TUN
	}
	return slices.Contains([]string{"wireguard", "ipip", "sit", "gre", "vti", "xfrm"}, link.Type())
}
