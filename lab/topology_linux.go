package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/wanem"
)

// clientPort is the router's device towards the client.
const clientPort = "lan0"

// upstreams is how many upstream addresses certificates are made for.
const upstreams = 16

// Client4, Client6 and the rest are the lab's fixed addresses.
func Client4() netip.Addr { return netip.MustParseAddr("10.77.0.2") }
func Client6() netip.Addr { return netip.MustParseAddr("fd77::2") }
func LAN4() netip.Addr    { return netip.MustParseAddr("10.77.0.66") }
func LAN6() netip.Addr    { return netip.MustParseAddr("fd77::66") }
func Origin4() netip.Addr { return netip.MustParseAddr("198.51.100.10") }
func Origin6() netip.Addr { return netip.MustParseAddr("2001:db8:f::b:10") }
func DNS4() netip.Addr    { return netip.MustParseAddr("198.51.100.53") }
func DNS6() netip.Addr    { return netip.MustParseAddr("2001:db8:f::b:53") }

// Closed4 and Closed6 have no server at all: they refuse everything.
func Closed4() netip.Addr { return netip.MustParseAddr("198.51.100.99") }
func Closed6() netip.Addr { return netip.MustParseAddr("2001:db8:f::b:99") }

// Blackhole4 and Blackhole6 swallow everything, at the router and in the
// internet.
func Blackhole4() netip.Addr { return netip.MustParseAddr("203.0.113.250") }
func Blackhole6() netip.Addr { return netip.MustParseAddr("2001:db8:f::a:250") }

// Upstream4 and Upstream6 are addresses for upstream proxies, i from 0 to 15.
func Upstream4(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + i)}) }
func Upstream6(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:f::a:%d", 10+i))
}

// zone is every name of the lab. All *.test names lead to the origins but for
//
//	v4.test, v6.test      one family only        closed.test     refuses
//	nx.test               does not exist         blackhole.test  swallows
//	dead6.test            IPv6 refuses           hole.test       its first address swallows
//	many.test             the last of 10 lives
//	alias.test            CNAME of example.test  dns.test        the name server
func zone() *origin.Zone {
	many := []netip.Addr{Closed4()}
	for len(many) < 9 {
		many = append(many, many[len(many)-1].Next())
	}
	many = append(many, Origin4())
	return &origin.Zone{
		Any: []netip.Addr{Origin4(), Origin6()},
		Hosts: map[string][]netip.Addr{
			"v4.test":        {Origin4()},
			"v6.test":        {Origin6()},
			"closed.test":    {Closed4(), Closed6()},
			"blackhole.test": {Blackhole4(), Blackhole6()},
			"dns.test":       {DNS4(), DNS6()},
			"dead6.test":     {Closed6(), Origin4()},
			"hole.test":      {Blackhole4(), Origin4()},
			"many.test":      many,
		},
		Missing: map[string]bool{"nx.test": true},
		CNAME:   map[string]string{"alias.test": "example.test"},
	}
}

// connect makes devices, addresses and routes.
func (l *Lab) connect(opt Options) error {
	for _, n := range l.nodes {
		if err := n.sysctls(); err != nil {
			return err
		}
	}
	router, inet := l.nodes[Router], l.nodes[Internet]
	if opt.Impair {
		box, err := wanem.Start(wanem.End{NS: router.ns, Device: "wan0"}, wanem.End{NS: inet.ns, Device: "eth0"}, l.Seed)
		if err != nil {
			return err
		}
		l.WAN = box
		l.onClose(box.Close)
	} else if err := veth(router, "wan0", inet, "eth0"); err != nil {
		return err
	}
	lan := clientPort
	if err := veth(router, clientPort, l.nodes[Client], "eth0"); err != nil {
		return err
	}
	if opt.LAN {
		lan = "br0"
		if err := bridge(router, lan, l.nodes[LAN]); err != nil {
			return err
		}
	}
	if err := errors.Join(
		l.nodes[Client].configure("eth0", []string{"10.77.0.2/24", "fd77::2/64"}, []string{"default 10.77.0.1", "default fd77::1"}),
		router.configure(lan, []string{"10.77.0.1/24", "fd77::1/64"}, nil),
		router.configure("wan0", []string{"192.0.2.1/24", "2001:db8:2::1/64"}, []string{
			"203.0.113.0/24 192.0.2.2", "198.51.100.0/24 192.0.2.2", "2001:db8:f::/64 2001:db8:2::2",
			"203.0.113.250/32 blackhole", "2001:db8:f::a:250/128 blackhole"}),
		inet.configure("eth0", []string{"192.0.2.2/24", "2001:db8:2::2/64"}, []string{
			"default 192.0.2.1", "default 2001:db8:2::1",
			"203.0.113.0/24 local", "198.51.100.0/24 local", "2001:db8:f::/64 local",
			"203.0.113.250/32 blackhole", "2001:db8:f::a:250/128 blackhole"}),
		l.configureLAN(),
	); err != nil {
		return err
	}
	return errors.Join(l.nodes[Client].await("eth0"), router.await(clientPort), router.await("wan0"), inet.await("eth0"))
}

// await waits until the kernel has noticed that a device's other end is up;
// until then it drops what is sent.
func (n *node) await(device string) error {
	h, err := n.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for range 1000 {
		link, err := h.LinkByName(device)
		if err != nil {
			return err
		}
		// A TAP never leaves the state unknown.
		if a := link.Attrs(); a.OperState == netlink.OperUp || a.OperState == netlink.OperUnknown && link.Type() != "veth" {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("%s: %s does not come up", n.kind, device)
}

func (l *Lab) configureLAN() error {
	if n := l.nodes[LAN]; n != nil {
		return n.configure("eth0", []string{"10.77.0.66/24", "fd77::66/64"}, []string{"default 10.77.0.1", "default fd77::1"})
	}
	return nil
}

// sysctls that make addresses usable at once and ports plentiful.
func (n *node) sysctls() error {
	set := map[string]string{
		"net/ipv6/conf/all/disable_ipv6":     "0",
		"net/ipv6/conf/default/disable_ipv6": "0",
		"net/ipv6/conf/all/accept_dad":       "0",
		"net/ipv6/conf/default/accept_dad":   "0",
		"net/ipv6/conf/all/accept_ra":        "0",
		"net/ipv6/conf/default/accept_ra":    "0",
		"net/ipv4/ip_local_port_range":       "1024 65000",
		"net/ipv4/tcp_tw_reuse":              "1",
		"net/core/somaxconn":                 "8192",
	}
	switch n.kind {
	case Router:
		set["net/ipv4/ip_forward"] = "1"
		set["net/ipv6/conf/all/forwarding"] = "1"
	case Internet:
		set["net/ipv6/ip_nonlocal_bind"] = "1" // its /64 is local as a whole
		set["net/ipv4/ip_unprivileged_port_start"] = "0"
	}
	return n.ns.Do(func() error {
		for name, value := range set {
			if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
				return fmt.Errorf("%s: %w", n.kind, err)
			}
		}
		return nil
	})
}

func (n *node) netlink() (*netlink.Handle, error) {
	return netlink.NewHandleAt(vnetns.NsHandle(n.ns.File().Fd()))
}

func veth(a *node, aDev string, b *node, bDev string) error {
	h, err := a.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: aDev}, PeerName: bDev,
		PeerNamespace: netlink.NsFd(b.ns.File().Fd()),
	}
	if err := h.LinkAdd(link); err != nil {
		return fmt.Errorf("add veth %s to %s: %w", aDev, bDev, err)
	}
	return nil
}

// bridge joins the client's port and the LAN machine's.
func bridge(router *node, name string, lan *node) error {
	if err := veth(router, "lan1", lan, "eth0"); err != nil {
		return err
	}
	h, err := router.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for _, port := range []string{clientPort, "lan1"} {
		link, err := h.LinkByName(port)
		if err != nil {
			return err
		}
		if err := errors.Join(h.LinkSetMaster(link, br), h.LinkSetUp(link)); err != nil {
			return fmt.Errorf("add %s to the bridge: %w", port, err)
		}
	}
	return nil
}

// configure gives a device addresses, brings it up and adds routes: "prefix
// gateway", "prefix local" or "prefix blackhole".
func (n *node) configure(device string, addrs, routes []string) error {
	h, err := n.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, name := range []string{"lo", device} {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", n.kind, name, err)
		}
		if name != "lo" {
			for _, a := range addrs {
				addr, err := netlink.ParseAddr(a)
				if err == nil {
					err = h.AddrAdd(link, addr)
				}
				if err != nil {
					return fmt.Errorf("%s: add %s to %s: %w", n.kind, a, name, err)
				}
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s: set %s up: %w", n.kind, name, err)
		}
	}
	for _, r := range routes {
		if err := addRoute(h, r); err != nil {
			return fmt.Errorf("%s: add route %s: %w", n.kind, r, err)
		}
	}
	return nil
}

func addRoute(h *netlink.Handle, text string) error {
	to, via, _ := strings.Cut(text, " ")
	r := &netlink.Route{}
	if to != "default" {
		_, dst, err := net.ParseCIDR(to)
		if err != nil {
			return err
		}
		r.Dst = dst
	}
	switch via {
	case "blackhole":
		r.Type = 6 // RTN_BLACKHOLE
	case "local":
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		r.LinkIndex, r.Type, r.Table, r.Scope = lo.Attrs().Index, 2 /* RTN_LOCAL */, 255, netlink.SCOPE_HOST
	default:
		r.Gw = net.ParseIP(via)
	}
	return h.RouteAdd(r)
}

// names gives each node its resolv.conf; the internet knows the zone by heart,
// since the Debian peers resolve there.
func (l *Lab) names() error {
	for _, n := range l.nodes {
		if err := n.writeResolvConf("nameserver " + DNS4().String() + "\n"); err != nil {
			return err
		}
		hosts := "127.0.0.1 localhost\n::1 localhost\n"
		if n.kind == Internet {
			for name, addrs := range l.Zone.Hosts {
				for _, a := range addrs {
					hosts += a.String() + " " + name + "\n"
				}
			}
		}
		if err := os.WriteFile(n.path("/etc/hosts"), []byte(hosts), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// commandOf adapts Command to functions that know no nodes.
func (l *Lab) commandOf(n Node) func(string, ...string) *exec.Cmd {
	return func(name string, args ...string) *exec.Cmd { return l.Command(n, name, args...) }
}
