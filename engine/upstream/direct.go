package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// direct reaches targets by the physical network, without a proxy.
type direct struct {
	net *netDialer
}

func (d *direct) open(ctx context.Context, a ask) (flow.StreamConn, error) {
	tr := traceOf(ctx)
	begin := time.Now()
	c, err := d.dial(ctx, a.t)
	tr.Dial = time.Since(begin)
	if err != nil {
		return nil, directFault(err)
	}
	if len(a.early) > 0 {
		release := until(ctx, c, handshakeTimeout)
		_, err := c.Write(a.early)
		if whole := release(); err != nil || !whole {
			c.Close()
			return nil, directFault(errors.Join(err, ctx.Err()))
		}
	}
	return c, nil
}

// dial prefers the address the app chose; a name is resolved only without one.
func (d *direct) dial(ctx context.Context, t flow.Target) (*net.TCPConn, error) {
	if t.Addr.IsValid() {
		return d.net.dialAddrs(ctx, []netip.Addr{t.Addr}, t.Port)
	}
	return d.net.dialHost(ctx, t.Name, t.Port)
}

// DialPackets opens one UDP socket per address family. The target is not
// needed: the socket serves any destination.
func (d *direct) DialPackets(ctx context.Context, _ flow.Target) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: d.net.opts.Control}
	c := &directPackets{net: d.net, names: make(map[string]named)}
	// The wildcard socket takes both families where the system has IPv6
	// (net.ListenPacket), and is IPv4 only where it has not.
	pc, err := lc.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return nil, directFault(fmt.Errorf("open UDP socket: %w", err))
	}
	c.UDPConn = pc.(*net.UDPConn)
	return c, nil
}

const (
	maxUDPNames = 256             // names remembered by one socket
	udpNameTTL  = 1 * time.Minute // after which one is resolved again
)

type named struct {
	addr netip.Addr
	at   time.Time
}

// directPackets is a UDP socket that also sends to names.
type directPackets struct {
	*net.UDPConn
	net *netDialer

	mu    sync.Mutex
	names map[string]named // guarded by mu
}

// WriteTo sends to a *net.UDPAddr or a NameAddr. A name's first datagram waits
// for the resolver.
func (c *directPackets) WriteTo(p []byte, to net.Addr) (int, error) {
	switch to := to.(type) {
	case *net.UDPAddr:
		ap := to.AddrPort()
		return c.WriteToUDPAddrPort(p, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	case NameAddr:
		addr, err := c.lookup(to.Name)
		if err != nil {
			return 0, err
		}
		return c.WriteToUDPAddrPort(p, netip.AddrPortFrom(addr, to.Port))
	}
	return 0, fmt.Errorf("send datagram: address of type %T is neither IP nor name", to)
}

// ReadFrom returns the real source, IPv4 addresses unmapped.
func (c *directPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	n, ap, err := c.ReadFromUDPAddrPort(p)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())), nil
}

func (c *directPackets) lookup(name string) (netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock() // also makes datagrams to the same name wait for one lookup
	if n, ok := c.names[name]; ok && time.Since(n.at) < udpNameTTL {
		return n.addr, nil
	}
	addrs, err := c.net.resolve(context.Background(), name)
	if err != nil {
		return netip.Addr{}, directFault(err)
	}
	if len(c.names) >= maxUDPNames {
		clear(c.names)
	}
	c.names[name] = named{pickUDP(addrs), time.Now()}
	return c.names[name].addr, nil
}

// pickUDP prefers IPv4: UDP has no handshake that would show a broken IPv6.
func pickUDP(addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Is4() {
			return a
		}
	}
	return addrs[0]
}
