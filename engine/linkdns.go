package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// linkDNS answers what apps ask of link-local resolvers (fe80::1%eth0). No route
// can take those queries into the TUN, as they name their interface; the Host
// takes them to this port instead (platform.NetConfig.LinkDNS).
type linkDNS struct {
	udp    *net.UDPConn
	tcp    *net.TCPListener
	port   uint16 // of both
	server *dns.Server
}

const linkDNSTries = 8 // ports, until one is free for both

// newLinkDNS listens on one port of all IPv6 addresses.
func newLinkDNS(server *dns.Server) (*linkDNS, error) {
	var err error
	for range linkDNSTries {
		l := &linkDNS{server: server}
		if l.tcp, err = net.ListenTCP("tcp6", nil); err != nil {
			break
		}
		l.port = flow.AddrPortOf(l.tcp.Addr()).Port()
		if l.udp, err = net.ListenUDP("udp6", &net.UDPAddr{Port: int(l.port)}); err == nil {
			return l, nil
		}
		l.tcp.Close()
	}
	return nil, fmt.Errorf("listen for queries to link-local resolvers: %w", err)
}

func (l *linkDNS) close() {
	l.udp.Close()
	l.tcp.Close()
}

// run answers until ctx ends.
func (l *linkDNS) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	defer l.close()
	stop := context.AfterFunc(ctx, l.close)
	defer stop()
	all.Go(func() { l.server.HandlePackets(ctx, flow.Flow{}, fromHere{l.udp}) })
	for {
		c, err := l.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // out of files: it passes
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if !isOwn(flow.AddrPortOf(c.RemoteAddr()).Addr()) {
			c.Close()
			continue
		}
		all.Go(func() { l.server.HandleStream(ctx, flow.Flow{}, accepted{c}) })
	}
}

// fromHere is a socket that hears this machine only, and never tires: the server
// gives up an app's socket that is idle.
type fromHere struct{ *net.UDPConn }

func (c fromHere) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(b)
		if err != nil || isOwn(flow.AddrPortOf(from).Addr()) {
			return n, from, err
		}
	}
}

func (fromHere) SetReadDeadline(time.Time) error { return nil }

// isOwn tells whether a is an address of this machine.
func isOwn(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(have net.Addr) bool {
		p, err := netip.ParsePrefix(have.String())
		return err == nil && p.Addr() == a.WithZone("")
	})
}

// accepted is the flow.Pending of a connection that is established.
type accepted struct{ conn *net.TCPConn }

var _ flow.Pending = accepted{}

func (a accepted) Accept() (flow.StreamConn, error) { return a.conn, nil }
func (a accepted) Reject(flow.Reason)               { a.conn.Close() }
