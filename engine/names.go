package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// names knows whom to ask for a name, and how to reach them:
//
//	what apps ask beyond addresses ─► exchange ─► the configured servers, through the upstream
//	names that are this network's own ─► local ─► those of the machine's former resolvers that are on this network
//	where a direct flow leads ─► lookup ─► the machine's former resolvers
//
// The last two leave by the physical network. A resolver elsewhere is never
// asked for a local name: it could not know it, and would learn of it.
type names struct {
	remote *dns.Client                // nil if no servers are configured
	system atomic.Pointer[dns.Client] // the machine's former resolvers; nil if there are none
	near   atomic.Pointer[dns.Client] // those of them on this network; nil if there are none
	lan    atomic.Pointer[[]netip.Prefix]
	ups    *upstreams
	dialer net.Dialer // its sockets leave by the physical network
	hosts  net.Resolver
	log    *slog.Logger
}

func newNames(servers []string, control func(string, string, syscall.RawConn) error, log *slog.Logger) (*names, error) {
	n := &names{log: log, dialer: net.Dialer{Control: control}}
	// A resolver that can ask nobody still reads the hosts file.
	n.hosts = net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("hosts file only")
	}}
	if len(servers) == 0 {
		return n, nil
	}
	var err error
	n.remote, err = dns.NewClient(dns.ClientOptions{Servers: overTCP(servers), Dial: n.dialUpstream, Log: log})
	if err != nil {
		return nil, fmt.Errorf("dns servers: %w", err)
	}
	return n, nil
}

// use gives names the upstreams, which are made after it.
func (n *names) use(ups *upstreams) { n.ups = ups }

// overTCP lets plain servers be asked over TCP (RFC 7766), which every
// upstream carries.
func overTCP(servers []string) []string {
	out := make([]string, len(servers))
	for i, s := range servers {
		switch {
		case strings.HasPrefix(s, "udp://"):
			s = "tcp://" + strings.TrimPrefix(s, "udp://")
		case !strings.Contains(s, "://"):
			if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
				s = "[" + s + "]"
			}
			s = "tcp://" + s
		}
		out[i] = s
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
	if c := n.system.Load(); c != nil && (n.remote == nil || n.ups.current() == n.ups.direct) {
		return c.Exchange(ctx, query)
	}
	if n.remote == nil {
		return nil, errNoResolver
	}
	return n.remote.Exchange(ctx, query)
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
	c := n.system.Load()
	if c == nil {
		return nil, fmt.Errorf("look up %s: %w", name, errNoResolver)
	}
	return c.LookupNetIP(ctx, name)
}

// setNetwork tells what the physical network has become.
func (n *names) setNetwork(c platform.NetChange) {
	lan := c.LAN
	n.lan.Store(&lan)
	var near []netip.Addr
	for _, a := range c.DNS {
		if n.isLocal(a) {
			near = append(near, a)
		}
	}
	n.replace(&n.system, c.DNS)
	n.replace(&n.near, near)
}

// replace puts a client of the given servers in place of an older one.
func (n *names) replace(at *atomic.Pointer[dns.Client], servers []netip.Addr) {
	var fresh *dns.Client
	if len(servers) > 0 {
		texts := make([]string, len(servers))
		for i, a := range servers {
			texts[i] = a.String()
		}
		var err error
		fresh, err = dns.NewClient(dns.ClientOptions{Servers: texts, Dial: n.dialer.DialContext, Log: n.log})
		if err != nil {
			n.log.Warn("the machine's resolvers cannot be used", "err", err)
		}
	}
	if old := at.Swap(fresh); old != nil {
		old.Close()
	}
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
	if n.remote != nil {
		n.remote.Close()
	}
	n.replace(&n.system, nil)
	n.replace(&n.near, nil)
}
