package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// names knows whom to ask for a name, and how to reach them:
//
//	what apps ask beyond addresses ─► exchange ─► the configured servers, through the upstream
//	names that are this network's own ─► local ─► those of the machine's former resolvers that are on this network
//	where a direct flow or an upstream leads ─► lookup ─► the machine's former resolvers
//
// The last two leave by the physical network. A resolver elsewhere is never
// asked for a local name: it could not know it, and would learn of it.
type names struct {
	servers []string                   // the configured ones
	remote  atomic.Pointer[dns.Client] // asks them; nil if there are none
	system  atomic.Pointer[dns.Client] // the machine's former resolvers; nil if there are none
	near    atomic.Pointer[dns.Client] // those of them on this network; nil if there are none
	lan     atomic.Pointer[[]netip.Prefix]
	ups     *upstreams
	dialer  net.Dialer // its sockets leave by the physical network
	hosts   net.Resolver
	log     *slog.Logger
}

func newNames(servers []string, control func(string, string, syscall.RawConn) error, log *slog.Logger) (*names, error) {
	n := &names{log: log, servers: overTCP(servers), dialer: net.Dialer{Control: control}}
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

// use gives names the upstreams, which are made after it.
func (n *names) use(ups *upstreams) { n.ups = ups }

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
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", port, err)
	}
	t := flow.Target{Port: uint16(p)}
	if t.Addr, err = netip.ParseAddr(host); err != nil {
		t.Name = host
	}
	return n.ups.current().DialStream(ctx, t, nil)
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

// lookup finds addresses for flows and upstreams that are dialled from here.
func (n *names) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if addrs, err := n.hosts.LookupNetIP(ctx, "ip", name); err == nil && len(addrs) > 0 {
		return addrs, nil
	}
	if dns.Loopback(name) {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	c := n.system.Load()
	if near := n.near.Load(); near != nil && dns.Local(name) {
		c = near
	}
	if c == nil {
		return nil, fmt.Errorf("look up %s: %w", name, errNoResolver)
	}
	return c.LookupNetIP(ctx, name)
}

// setNetwork tells what the physical network has become.
func (n *names) setNetwork(c platform.NetChange) {
	lan := c.LAN
	n.lan.Store(&lan)
	var all, near []string
	for _, a := range c.DNS {
		all = append(all, a.String())
		if n.isLocal(a) {
			near = append(near, a.String())
		}
	}
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

// isLocal tells whether an address is this machine's or one of its own network.
func (n *names) isLocal(a netip.Addr) bool {
	if a.IsLoopback() || a.IsLinkLocalUnicast() {
		return true
	}
	if lan := n.lan.Load(); lan != nil {
		for _, p := range *lan {
			if p.Contains(a) {
				return true
			}
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
