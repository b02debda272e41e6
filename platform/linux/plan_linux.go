package linux

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// The names and numbers that are ours. Neighbours to stay clear of: Tailscale
// (rules 5200-5270, table 52, mark 0x80000/0xff0000), wg-quick (rules
// 32764-32765, table and mark 51820), Mullvad (mark 0x6d6f6c65), and the low
// half of the mark, which Kubernetes and Cilium use.
const (
	tableMain = 254  // RT_TABLE_MAIN
	tableOwn  = 7891 // default routes into the TUN, and routes of other networks

	mark     uint32 = 0x41540000 // "AT": leaves by the physical network
	markMask uint32 = 0xffff0000

	prefMarked  = 5300 // marked packets -> main
	prefNoWay   = 5301 // marked packets that main has no route for -> unreachable, never the TUN
	prefInbound = 5302 // replies of listening ports -> main, only without nftables
	prefFrom    = 5303 // packets with the TUN's address, whatever mark somebody has given them since -> TUN
	prefDNS     = 5305 // port 53 -> TUN or another network, even towards the LAN
	prefLocal   = 5310 // multicast and link-local -> main
	prefLAN     = 5311 // attached private subnets -> main
	prefAll     = 5330 // everything else without a mark -> another network, or the TUN
	prefForward = 5331 // what comes in to be forwarded, also with a mark -> the same

	nftTable = "atlantic"
)

// opKind says what sort of object an op is.
type opKind string

const (
	opRule   opKind = "rule"
	opRoute  opKind = "route"
	opNFT    opKind = "nft"
	opSysctl opKind = "sysctl"
	opDNS    opKind = "dns"

	opRedirect opKind = "redirect"
	opGate     opKind = "gate"
	opLinkDNS  opKind = "linkdns"
)

// op is one object of ours in the system. It is stored in the journal as JSON;
// fields that do not belong to its kind are zero.
type op struct {
	Kind   opKind `json:"kind"`
	Family int    `json:"family,omitempty"` // 4 or 6: rule, route

	// rule: all given conditions must hold
	Pref     int          `json:"pref,omitempty"`
	Mark     bool         `json:"mark,omitempty"`     // with our mark
	Unmarked bool         `json:"unmarked,omitempty"` // without any mark
	Forward  bool         `json:"forward,omitempty"`  // not begun on this machine
	From     netip.Prefix `json:"from,omitzero"`
	To       netip.Prefix `json:"to,omitzero"`     // rule; route (zero: default); redirect: the IPv6 destinations
	Proto    string       `json:"proto,omitempty"` // "tcp" or "udp"
	Sport    uint16       `json:"sport,omitempty"`
	Dport    uint16       `json:"dport,omitempty"` // rule; redirect: the listener's
	Table    int          `json:"table,omitempty"` // rule (0: unreachable), route

	Dev     string       `json:"dev,omitempty"`     // route ("": unreachable); nft, gate, redirect, dns: the TUN
	Gateway netip.Addr   `json:"gateway,omitzero"`  // route
	Src     netip.Addr   `json:"src,omitzero"`      // route: the preferred source
	Addrs   []netip.Addr `json:"addrs,omitempty"`   // nft: the TUN's own
	Uplinks []string     `json:"uplinks,omitempty"` // gate
	Links   []link       `json:"links,omitempty"`   // linkdns
	Except  []uint16     `json:"except,omitempty"`  // redirect: destination ports that are left alone

	// sysctl: Was is the value found, "" if it was Value already
	Key   string `json:"key,omitempty"` // path below /proc/sys
	Value string `json:"value,omitempty"`
	Was   string `json:"was,omitempty"`

	// dns
	Backend dnsBackend   `json:"backend,omitempty"`
	Servers []netip.Addr `json:"servers,omitempty"`
	Index   int          `json:"index,omitempty"` // of the TUN, when it was made
	File    *savedFile   `json:"file,omitempty"`  // what resolv.conf was
	NM      string       `json:"nm,omitempty"`    // what NetworkManager had
}

// String tells o as the command that an administrator would type. Two ops with
// the same text are the same object.
func (o op) String() string {
	switch o.Kind {
	case opRule:
		return o.ruleString()
	case opRoute:
		return o.routeString()
	case opNFT:
		return fmt.Sprintf("nft add table inet %s (tun %s %v)", nftTable, o.Dev, o.Addrs)
	case opGate:
		return fmt.Sprintf("nft refuse what is forwarded from %v to dev %s", o.Uplinks, o.Dev)
	case opLinkDNS:
		return fmt.Sprintf("nft take queries to link-local resolvers by %v to port %d", o.Links, o.Dport)
	case opRedirect:
		return o.redirectString()
	case opSysctl:
		return fmt.Sprintf("sysctl %s=%s", strings.ReplaceAll(o.Key, "/", "."), o.Value)
	case opDNS:
		return fmt.Sprintf("dns %s %v dev %s", o.Backend, o.Servers, o.Dev)
	}
	return "unknown operation " + string(o.Kind)
}

func (o op) routeString() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ip -%d route add", o.Family)
	if o.Dev == "" {
		b.WriteString(" unreachable")
	}
	if o.To.IsValid() {
		fmt.Fprintf(&b, " %s", o.To)
	} else {
		b.WriteString(" default")
	}
	if o.Gateway.IsValid() {
		fmt.Fprintf(&b, " via %s", o.Gateway)
	}
	if o.Dev != "" {
		fmt.Fprintf(&b, " dev %s", o.Dev)
	}
	if o.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", o.Src)
	}
	fmt.Fprintf(&b, " table %d", o.Table)
	return b.String()
}

func (o op) ruleString() string {
	var b strings.Builder
	fmt.Fprintf(&b, "ip -%d rule add pref %d", o.Family, o.Pref)
	if o.Mark {
		fmt.Fprintf(&b, " fwmark %#x/%#x", mark, markMask)
	}
	if o.Unmarked {
		b.WriteString(" fwmark 0")
	}
	if o.Forward {
		b.WriteString(" not iif lo")
	}
	if o.From.IsValid() {
		fmt.Fprintf(&b, " from %s", o.From)
	}
	if o.To.IsValid() {
		fmt.Fprintf(&b, " to %s", o.To)
	}
	if o.Proto != "" {
		fmt.Fprintf(&b, " ipproto %s", o.Proto)
	}
	if o.Sport != 0 {
		fmt.Fprintf(&b, " sport %d", o.Sport)
	}
	if o.Dport != 0 {
		fmt.Fprintf(&b, " dport %d", o.Dport)
	}
	switch o.Table {
	case 0:
		b.WriteString(" unreachable")
	case tableMain:
		b.WriteString(" lookup main")
	default:
		fmt.Fprintf(&b, " lookup %d", o.Table)
	}
	return b.String()
}

func (o op) redirectString() string {
	var b strings.Builder
	fmt.Fprintf(&b, "nft redirect tcp of dev %s to :%d", o.Dev, o.Dport)
	if o.To.IsValid() {
		fmt.Fprintf(&b, ", also to %s", o.To)
	}
	if len(o.Except) > 0 {
		fmt.Fprintf(&b, ", not to ports %v", o.Except)
	}
	return b.String()
}

// survivesReboot tells objects on disk from those in the kernel.
func (o *op) survivesReboot() bool { return o.Kind == opDNS }

// facts are what the plan needs to know about the machine.
type facts struct {
	IPv6      bool           // the kernel has it
	TUN6      bool           // the TUN takes it
	Loopback6 bool           // and so does loopback
	LAN       []netip.Prefix // attached private subnets
	Uplinks   []string       // what others send by these is not forwarded into the TUN
	Links     []link         // by which a link-local resolver may be asked
	Others    []op           // routes of other networks
	More      int            // such routes beyond those
	NFT       bool           // nftables with conntrack is there
	// StrictRP are interfaces whose rp_filter is strict (RFC 3704 section 2.2).
	StrictRP []string
	// Listening are the TCP ports with a listener; read only without NFT.
	Listening []uint16
	DNS       dnsBackend
}

// localNets are never routed, so that they cannot leave the attached links.
func localNets(family int) []netip.Prefix {
	if family == 4 {
		return []netip.Prefix{
			netip.MustParsePrefix("169.254.0.0/16"),
			netip.MustParsePrefix("224.0.0.0/4"),
			netip.MustParsePrefix("255.255.255.255/32"),
		}
	}
	return []netip.Prefix{netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8")}
}

// plan lists the objects that make cfg true, in the order in which they are to
// be made: what keeps connections alive first, what captures traffic last.
func plan(cfg platform.NetConfig, f facts) []op {
	if cfg.TUN == "" {
		return nil
	}
	var ops []op
	var families []int
	if cfg.Default4 {
		families = append(families, 4)
	}
	if cfg.Default6 && f.IPv6 {
		families = append(families, 6)
	}
	if len(families) > 0 {
		ops = append(ops, planInbound(cfg, f)...)
	}
	for _, family := range families {
		o := op{Kind: opRoute, Family: family, Table: tableOwn, Dev: cfg.TUN}
		if family == 6 && !f.TUN6 { // /proc/sys is read-only, and IPv6 off for new devices
			o.Dev = ""
		}
		ops = append(ops, o)
	}
	for _, o := range f.Others {
		if slices.Contains(families, o.Family) {
			ops = append(ops, o)
		}
	}
	for _, family := range families {
		ops = append(ops, planRules(family, cfg, f)...)
	}
	if cfg.Redirect != 0 && len(families) > 0 && f.NFT {
		o := op{Kind: opRedirect, Dev: cfg.TUN, Dport: cfg.Redirect, Except: slices.Clone(cfg.RedirectExcept)}
		if cfg.Default6 && f.TUN6 && f.Loopback6 && cfg.Addr6.IsValid() {
			o.To = cfg.Addr6.Masked()
		}
		ops = append(ops, o)
	}
	if cfg.LinkDNS != 0 && slices.Contains(families, 6) && f.NFT && len(f.Links) > 0 {
		ops = append(ops, op{Kind: opLinkDNS, Links: f.Links, Dport: cfg.LinkDNS})
	}
	if len(cfg.DNS) > 0 && f.DNS != dnsNone {
		ops = append(ops, op{Kind: opDNS, Backend: f.DNS, Servers: slices.Clone(cfg.DNS), Dev: cfg.TUN})
	}
	return ops
}

// planInbound keeps connections from outside, and replies to our own sockets,
// on the interface they came by. With nftables conntrack remembers them; strict
// reverse-path checks must then look at the mark. Without, the checks are made
// loose and the listening ports are routed past the TUN.
func planInbound(cfg platform.NetConfig, f facts) []op {
	if f.NFT {
		table := op{Kind: opNFT, Dev: cfg.TUN}
		for _, p := range []netip.Prefix{cfg.Addr4, cfg.Addr6} {
			if p.IsValid() {
				table.Addrs = append(table.Addrs, p.Addr())
			}
		}
		ops := []op{table}
		if len(f.Uplinks) > 0 {
			ops = append(ops, op{Kind: opGate, Dev: cfg.TUN, Uplinks: f.Uplinks})
		}
		if len(f.StrictRP) > 0 {
			ops = append(ops, op{Kind: opSysctl, Key: "net/ipv4/conf/all/src_valid_mark", Value: "1"})
		}
		return ops
	}
	var ops []op
	for _, name := range f.StrictRP {
		ops = append(ops, op{Kind: opSysctl, Key: "net/ipv4/conf/" + name + "/rp_filter", Value: "2"})
	}
	return ops
}

func planRules(family int, cfg platform.NetConfig, f facts) []op {
	rule := func(pref, table int) op { return op{Kind: opRule, Family: family, Pref: pref, Table: table} }
	marked := rule(prefMarked, tableMain)
	marked.Mark = true
	// Without a route in main (no uplink, or none of this family) our own packet
	// would go on to the last rule, into the TUN, and become a flow that we dial
	// for again, without end.
	noWay := rule(prefNoWay, 0)
	noWay.Mark = true
	ops := []op{marked, noWay}
	addr := cfg.Addr4
	if family == 6 {
		addr = cfg.Addr6
	}
	if addr.IsValid() {
		from := rule(prefFrom, tableOwn)
		from.From = netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen())
		ops = append(ops, from)
	}
	if !f.NFT {
		for _, port := range f.Listening {
			o := rule(prefInbound, tableMain)
			o.Proto, o.Sport = "tcp", port
			ops = append(ops, o)
		}
	}
	if len(cfg.DNS) > 0 {
		for _, proto := range []string{"udp", "tcp"} {
			o := rule(prefDNS, tableOwn)
			o.Proto, o.Dport, o.Unmarked = proto, 53, true
			ops = append(ops, o)
		}
	}
	if cfg.LAN {
		for _, p := range localNets(family) {
			o := rule(prefLocal, tableMain)
			o.To = p
			ops = append(ops, o)
		}
		for _, p := range f.LAN {
			if p.Addr().Is4() == (family == 4) {
				o := rule(prefLAN, tableMain)
				o.To = p
				ops = append(ops, o)
			}
		}
	}
	// A mark of somebody else says that a program of this machine has a way of its
	// own for its packets, as a VPN has for its outer ones: as if we were not there.
	all, forward := rule(prefAll, tableOwn), rule(prefForward, tableOwn)
	all.Unmarked, forward.Forward = true, true
	return append(ops, all, forward)
}
