package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/net/publicsuffix"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// names knows whom to ask for a name, and how to reach them:
//
//	what apps ask beyond addresses ─► exchange ─► the configured servers, through the upstream
//	names that are this network's own ─► local ─► those of the machine's former resolvers that are in this network
//	where an upstream is ─► lookup ─► the machine's former resolvers
//	where a direct flow leads ─► lookupTarget ─► the same, but not to this machine itself
//
// The last three leave by the physical network. A resolver elsewhere is never
// asked for a local name: it could not know it, and would learn of it.
type names struct {
	servers []string                   // the configured ones
	remote  atomic.Pointer[dns.Client] // asks them; nil if there are none
	system  atomic.Pointer[dns.Client] // the machine's former resolvers; nil if there are none
	near    atomic.Pointer[dns.Client] // those of them in this network; nil if there are none
	net     atomic.Pointer[network]    // never nil
	ups     *upstreams
	server  *dns.Server
	rules   *rules.Set
	lanOn   bool           // [protect] lan
	tun     []netip.Prefix // the TUN's and the fake addresses
	dialer  net.Dialer     // its sockets leave by the physical network
	hosts   net.Resolver
	log     *slog.Logger
}

// network is what names needs to know of the physical one.
type network struct {
	others []platform.Network // beside it, each by an interface of its own
	lan    []netip.Prefix
	self   []netip.Addr // of this machine
	search []string     // domains that are this network's own, canonical
	homely bool         // all the machine's resolvers are in this network
}

func newNames(cfg *config.Config, control func(string, string, syscall.RawConn) error, log *slog.Logger) (*names, error) {
	n := &names{
		log: log, servers: overTCP(cfg.DNS.Servers), dialer: net.Dialer{Control: control},
		lanOn: cfg.Protect.LAN, tun: []netip.Prefix{cfg.DNS.FakeRange.Masked(), addr6.Masked()},
	}
	n.net.Store(new(network))
	// A resolver that can ask nobody still reads the hosts file.
	n.hosts = net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("hosts file only")
	}}
	if err := n.replace(&n.remote, n.servers, n.dialUpstream); err != nil {
		return nil, fmt.Errorf("dns servers: %w", err)
	}
	return n, nil
}

// switched forgets the connections to the configured servers: they lead through
// the former upstream, or the former network.
func (n *names) switched() { _ = n.replace(&n.remote, n.servers, n.dialUpstream) } // newNames has seen that it works

// use gives names the parts that are made after it.
func (n *names) use(ups *upstreams, server *dns.Server, rules *rules.Set) {
	n.ups, n.server, n.rules = ups, server, rules
}

// overTCP lets plain servers be asked over TCP (RFC 7766), which every
// upstream carries.
func overTCP(servers []string) []string {
	out := make([]string, len(servers))
	for i, text := range servers {
		out[i] = text
		if s, err := proxy.ParseServer(text); err == nil && s.Scheme == "udp" { // else NewClient says what is wrong
			s.Scheme = "tcp"
			out[i] = s.URL()
		}
	}
	return out
}

func (n *names) dialUpstream(ctx context.Context, network, address string) (net.Conn, error) {
	return dialBy(n.ups.current())(ctx, network, address)
}

// dialBy opens connections to DNS servers through u.
func dialBy(u *upstream.Upstream) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		t, err := targetOf(address)
		if err != nil {
			return nil, err
		}
		return u.DialStream(ctx, t, nil)
	}
}

// targetOf reads host:port.
func targetOf(address string) (t flow.Target, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return t, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return t, fmt.Errorf("port %q: %w", port, err)
	}
	t.Port = uint16(p)
	if t.Addr, err = netip.ParseAddr(host); err != nil {
		t.Name = host
	}
	return t, nil
}

var errNoResolver = errors.New("this machine has no DNS resolver to ask")

// exchange asks the configured servers through the upstream in use. Without an
// upstream proxy (direct) the machine's own resolvers are as good, and nearer.
func (n *names) exchange(ctx context.Context, query []byte) ([]byte, error) {
	remote := n.remote.Load()
	if c := n.system.Load(); c != nil && (remote == nil || n.ups.current() == n.ups.direct) {
		return c.Exchange(ctx, query)
	}
	if remote == nil {
		return nil, errNoResolver
	}
	return remote.Exchange(ctx, query)
}

// through asks the configured servers for a name's addresses by way of u, and
// nobody else: who looks the name up is who carries its flows.
func (n *names) through(ctx context.Context, u *upstream.Upstream, name string) ([]netip.Addr, error) {
	c := n.remote.Load()
	if c == nil || n.localName(name) {
		return nil, nil
	}
	if u != n.ups.current() {
		var err error
		if c, err = dns.NewClient(dns.ClientOptions{Servers: n.servers, Dial: dialBy(u), Log: n.log}); err != nil {
			return nil, err
		}
		defer c.Close()
	}
	addrs, err := c.LookupNetIP(ctx, name)
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return n.refuses(name, a, false) }), err
}

// local asks the resolvers of this network.
func (n *names) local(ctx context.Context, query []byte) ([]byte, error) {
	c := n.near.Load()
	if n.ups.current() == n.ups.direct {
		c = n.system.Load()
	}
	if c == nil {
		return nil, fmt.Errorf("no resolver on this network: %w", dns.ErrNoSuchName)
	}
	return c.Exchange(ctx, query)
}

// lookup finds addresses of upstreams, wherever they lead: the user has chosen
// them.
func (n *names) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if addrs, err := n.hosts.LookupNetIP(ctx, "ip", name); err == nil && len(addrs) > 0 {
		return addrs, nil
	}
	return n.ask(ctx, strings.ToLower(strings.TrimSuffix(name, ".")))
}

// ask asks the machine's resolvers for the addresses of a canonical name.
func (n *names) ask(ctx context.Context, name string) ([]netip.Addr, error) {
	if dns.Loopback(name) {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	c := n.system.Load()
	if near := n.near.Load(); near != nil && n.localName(name) {
		c = near
	}
	if dns.Nowhere(name) {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	if c == nil {
		return nil, fmt.Errorf("look up %s: %w", name, errNoResolver)
	}
	return c.LookupNetIP(ctx, name)
}

// lookupTarget finds addresses for flows that are dialled from here. What the
// hosts file and this network's own names lead to is their business; other names
// must not lead to where refuses says.
func (n *names) lookupTarget(ctx context.Context, name string) ([]netip.Addr, error) {
	if addrs, err := n.hosts.LookupNetIP(ctx, "ip", name); err == nil && len(addrs) > 0 {
		return addrs, nil
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	addrs, err := n.ask(ctx, name)
	if err != nil || dns.Loopback(name) || n.localName(name) {
		return addrs, err
	}
	var last netip.Addr
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		refused := n.refuses(name, a, true)
		if refused {
			last = a
		}
		return refused
	})
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s leads to %v, which no name of the public internet may: any web page could use it to reach this machine or its network (DNS rebinding)", name, last)
	}
	return addrs, nil
}

// refuses says that a name which is not of this network must not lead to a:
// never to loopback or into the TUN; to the machine's own address only if a rule
// sends the name there, and so with a private one, unless nobody but this
// network's own resolvers can have said so. native: the machine's resolvers did.
func (n *names) refuses(name string, a netip.Addr, native bool) bool {
	a = a.Unmap()
	network := n.net.Load()
	self := slices.Contains(network.self, a)
	switch scope := dns.ScopeOf(a); {
	case scope == dns.Host, slices.ContainsFunc(n.tun, func(p netip.Prefix) bool { return p.Contains(a) }):
		return true
	case !self && (scope == dns.Public || native && network.homely):
		return false
	}
	v := n.rules.Match(rules.Query{Network: flow.TCP, Name: name, Port: 443})
	return v.Kind != flow.Direct || v.Rule == "default"
}

// refusesAnswer is refuses for what exchange has answered.
func (n *names) refusesAnswer(name string, a netip.Addr) bool {
	return n.refuses(name, a, n.ups.current() == n.ups.direct && n.system.Load() != nil)
}

// localName says whether only this network can know a canonical name, or it
// calls it its own.
func (n *names) localName(name string) bool {
	return dns.Local(name) || dns.Below(name, n.net.Load().search)
}

// setNetwork tells what the physical network has become.
func (n *names) setNetwork(c platform.NetChange) {
	now := &network{lan: c.LAN, self: c.Self, others: c.Others}
	if n.lanOn {
		now.search = ownDomains(c.Search)
	}
	var all, near []string
	for _, a := range c.DNS {
		all = append(all, a.String())
		// A private one beyond a router is the same network's: an office's, say.
		if a.IsPrivate() || now.contains(a) || now.beside(a) {
			near = append(near, a.String())
		}
	}
	now.homely = len(near) == len(all)
	n.net.Store(now)
	n.server.SetNetwork(now.search)
	err := n.replace(&n.system, all, n.dialer.DialContext)
	if err = errors.Join(err, n.replace(&n.near, near, n.dialer.DialContext)); err != nil {
		n.log.Warn("the machine's resolvers cannot be used", "err", err)
	}
}

// replace puts a client of the given servers, if any, in place of an older one.
func (n *names) replace(at *atomic.Pointer[dns.Client], servers []string,
	dial func(ctx context.Context, network, address string) (net.Conn, error)) (err error) {
	var fresh *dns.Client
	if len(servers) > 0 {
		fresh, err = dns.NewClient(dns.ClientOptions{Servers: servers, Dial: dial, Log: n.log})
	}
	if old := at.Swap(fresh); old != nil {
		old.Close()
	}
	return err
}

// ownDomains leaves out what no network can call its own: com, co.uk, the root.
// Whoever runs the network a laptop is in could take half the names there are
// by it.
func ownDomains(search []string) []string {
	var own []string
	for _, d := range search {
		suffix, icann := publicsuffix.PublicSuffix(d)
		if d != "" && (suffix != d || !icann && !strings.Contains(d, ".")) {
			own = append(own, d)
		}
	}
	return own
}

// isLocal tells whether an address is this machine's or one of its own network.
func (n *names) isLocal(a netip.Addr) bool { return n.net.Load().contains(a) }

func (w *network) contains(a netip.Addr) bool {
	return a.IsLoopback() || a.IsLinkLocalUnicast() ||
		slices.ContainsFunc(w.lan, func(p netip.Prefix) bool { return p.Contains(a) })
}

// others are the networks beside, as status has them.
func (n *names) others() (all []api.Network) {
	for _, o := range n.net.Load().others {
		all = append(all, api.Network{Interface: o.Interface, Prefixes: o.Prefixes})
	}
	return all
}

// beside tells whether an address is in another network that this machine has an
// interface to, such as another tunnel's.
func (w *network) beside(a netip.Addr) bool {
	for _, o := range w.others {
		if slices.ContainsFunc(o.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

func (n *names) close() {
	for _, at := range []*atomic.Pointer[dns.Client]{&n.remote, &n.system, &n.near} {
		if c := at.Swap(nil); c != nil {
			c.Close()
		}
	}
}
