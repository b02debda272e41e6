package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// DialPackets opens a UDP socket. The target is not needed: the socket serves
// any destination.
func (d *direct) DialPackets(ctx context.Context, _ flow.Target) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: d.net.opts.Control}
	// The wildcard socket takes both families where the system has IPv6
	// (net.ListenPacket), and is IPv4 only where it has not.
	pc, err := lc.ListenPacket(ctx, "udp", ":0")
	if err != nil {
		return nil, directFault(fmt.Errorf("open UDP socket: %w", err))
	}
	c := &directPackets{UDPConn: pc.(*net.UDPConn), dialer: d, guard: guardOf(ctx)}
	if c.raw, err = c.SyscallConn(); err != nil {
		_ = c.Close()
		return nil, directFault(fmt.Errorf("open UDP socket: %w", err))
	}
	c.v6 = flow.AddrPortOf(c.LocalAddr()).Addr().Is6()
	c.alone.Store(!d.prepare(c.raw))
	hearRefusals(c.raw)
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
	raw    syscall.RawConn
	v6     bool // takes IPv6 addresses, and IPv4 ones mapped
	dialer *direct
	guard  Guard       // of names; nil admits all
	alone  atomic.Bool // the kernel does not cut messages into datagrams

	refused atomic.Pointer[func(netip.AddrPort)] // what was given to OnRefused

	resolving sync.Mutex // datagrams to the same name wait for one lookup
	mu        sync.Mutex
	names     map[NameAddr]named // guarded by mu; nil until a name was asked; by port too, as guard is
}

// OnRefused implements flow.RefusalTeller, where the system tells (Linux).
func (c *directPackets) OnRefused(f func(netip.AddrPort)) { c.refused.Store(&f) }

// WriteTo sends to a *net.UDPAddr or a NameAddr. A name's first datagram waits
// for the resolver.
func (c *directPackets) WriteTo(p []byte, to net.Addr) (int, error) {
	switch to := to.(type) {
	case *net.UDPAddr:
		ap := to.AddrPort()
		return c.write(p, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	case NameAddr:
		addr, err := c.lookup(to)
		if err != nil {
			return 0, err
		}
		return c.write(p, netip.AddrPortFrom(addr, to.Port))
	}
	return 0, fmt.Errorf("send datagram: address of type %T is neither IP nor name", to)
}

// write sends p, again if the error was that of a datagram before.
func (c *directPackets) write(p []byte, to netip.AddrPort) (int, error) {
	n, err := c.WriteToUDPAddrPort(p, to)
	if errno, ok := errors.AsType[syscall.Errno](err); ok && toldLate(errno) {
		c.wasRefused()
		n, err = c.WriteToUDPAddrPort(p, to)
	}
	return n, err
}

// ReadFrom returns the real source, IPv4 addresses unmapped.
func (c *directPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	n, ap, err := c.ReadFromUDPAddrPort(p)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())), nil
}

func (c *directPackets) lookup(to NameAddr) (netip.Addr, error) {
	c.resolving.Lock()
	defer c.resolving.Unlock()
	if a, ok := c.known(to); ok {
		return a, nil
	}
	addrs, err := c.dialer.net.resolve(context.Background(), to.Name)
	if err == nil {
		addrs, err = c.guard.admit(addrs, to.Port)
	}
	if err != nil {
		return netip.Addr{}, directFault(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == nil || len(c.names) >= maxUDPNames {
		c.names = make(map[NameAddr]named)
	}
	c.names[to] = named{pickUDP(addrs), time.Now()}
	return c.names[to].addr, nil
}

// known is the address of a name that was resolved lately.
func (c *directPackets) known(to NameAddr) (netip.Addr, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, ok := c.names[to]
	return n.addr, ok && time.Since(n.at) < udpNameTTL
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
