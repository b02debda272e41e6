package listener

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// serveAssociation carries a UDP ASSOCIATE (RFC 1928 section 7): a relay socket
// that lives as long as the TCP connection the app asked on. One flow takes all
// its datagrams; when the Handler ends that flow, the next datagram opens
// another. from is where the app says that it will send them from.
func (s *server) serveAssociation(ctx context.Context, app *client, from socksAddr) {
	defer app.Close()
	local := flow.AddrPortOf(app.LocalAddr())
	lc := net.ListenConfig{Control: onLoopback}
	pc, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(local.Addr(), 0).String())
	if err != nil {
		s.opts.Log.Warn("socks5: no socket for a udp association", "err", err)
		app.refuse(socksReply(replyFailure, netip.AddrPort{}))
		return
	}
	relay := pc.(*net.UDPConn)
	defer relay.Close()
	if _, err := app.Write(socksReply(replySucceeded, flow.AddrPortOf(relay.LocalAddr()))); err != nil {
		return
	}
	app.said()
	app.SetDeadline(time.Time{})
	var control sync.WaitGroup
	control.Go(func() {
		io.Copy(io.Discard, app.TCPConn) // until the app closes it
		relay.Close()
	})
	defer control.Wait()
	defer app.Close()

	a := &association{relay: relay, control: app, host: app.addr().Addr(), buf: make([]byte, 65535)}
	// Zeros are for an app that does not know, and another host's address, from
	// where it cannot send here, for one that gives its target's.
	if ip, err := netip.ParseAddr(from.host); err == nil && (ip.IsUnspecified() || ip == a.host) {
		a.port = from.port
	}
	for {
		payload, to, err := a.receive()
		if err != nil {
			return
		}
		t, _ := targetOf(to)
		p := &socksPackets{association: a, first: append([]byte(nil), payload...), firstTo: to}
		s.opts.Handler.HandlePackets(ctx, newFlow(flow.UDP, flow.SOCKS5, a.app(), flow.AddrPortOf(relay.LocalAddr()), t), p)
		p.Close()
		relay.SetReadDeadline(time.Time{})
	}
}

// targetOf is where a datagram's destination leads.
func targetOf(to net.Addr) (flow.Target, error) {
	if named, ok := to.(flow.NameAddr); ok {
		return newTarget(named.Name, named.Port)
	}
	ap := flow.AddrPortOf(to)
	return newTarget(ap.Addr().String(), ap.Port())
}

// association is the relay socket of one app.
type association struct {
	relay   *net.UDPConn
	control *client    // the connection that it was asked on
	host    netip.Addr // the app's; datagrams from elsewhere are dropped
	port    uint16     // the app's, 0 if it has not said
	buf     []byte     // used by the one receiver at a time

	mu   sync.Mutex
	from netip.AddrPort // the app's socket, learnt from its first datagram; guarded by mu
}

func (a *association) app() netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.from
}

// belongs reports whether a datagram from src is the app's.
func (a *association) belongs(src netip.AddrPort) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.from.IsValid() && src.Addr() == a.host && (a.port == 0 || src.Port() == a.port) && a.sameUser(src) {
		a.from = src
	}
	return src == a.from
}

// sameUser reports whether the socket src is of the user who has asked for the
// association: any program of this machine can send to the relay.
func (a *association) sameUser(src netip.AddrPort) bool {
	user := a.control.s.opts.User
	if user == nil {
		return true
	}
	uid, ok := user(flow.UDP, src, flow.AddrPortOf(a.relay.LocalAddr()))
	return ok && a.control.owner() == owner{uid: uid, known: true}
}

// receive returns the next datagram and its destination, *net.UDPAddr or
// flow.NameAddr. The payload is valid until the next call. What is not the
// app's, or makes no sense, is dropped.
func (a *association) receive() ([]byte, net.Addr, error) {
	for {
		n, src, err := a.relay.ReadFromUDPAddrPort(a.buf)
		if err != nil {
			return nil, nil, err
		}
		src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		payload, to, err := parseDatagram(a.buf[:n])
		if err == nil && a.belongs(src) {
			return payload, to, nil
		}
	}
}

// parseDatagram reads the header of RFC 1928 section 7. Fragments are refused,
// as the RFC allows: no client is known to send them.
func parseDatagram(p []byte) (payload []byte, to net.Addr, err error) {
	if len(p) < 4 {
		return nil, nil, fmt.Errorf("datagram of %d bytes: %w", len(p), io.ErrUnexpectedEOF)
	}
	if p[2] != 0 {
		return nil, nil, fmt.Errorf("fragment %d", p[2])
	}
	r := bytes.NewReader(p[3:])
	addr, err := readSOCKSAddr(r)
	if err != nil {
		return nil, nil, err
	}
	t, err := newTarget(addr.host, addr.port)
	if err != nil {
		return nil, nil, err
	}
	payload = p[len(p)-r.Len():]
	if t.Name != "" {
		return payload, flow.NameAddr{Name: t.Name, Port: t.Port}, nil
	}
	return payload, flow.UDPAddrOf(t.AddrPort()), nil
}

// socksPackets is the net.PacketConn of one flow over an association.
type socksPackets struct {
	*association
	closed atomic.Bool

	reading sync.Mutex
	first   []byte // the datagram that opened the flow; nil once delivered; guarded by reading
	firstTo net.Addr

	deadline sync.Mutex // orders SetReadDeadline and Close
}

var _ net.PacketConn = (*socksPackets)(nil)

// ReadFrom implements net.PacketConn; the address may be a flow.NameAddr.
func (c *socksPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed.Load() {
		return 0, nil, net.ErrClosed
	}
	if c.firstTo != nil {
		n, to := copy(p, c.first), c.firstTo
		c.first, c.firstTo = nil, nil
		return n, to, nil
	}
	payload, to, err := c.receive()
	if c.closed.Load() {
		return 0, nil, net.ErrClosed
	}
	return copy(p, payload), to, err
}

// WriteTo implements net.PacketConn: the app receives p as if from had sent it.
func (c *socksPackets) WriteTo(p []byte, from net.Addr) (int, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	message := append(appendSOCKSAddr([]byte{0, 0, 0}, from), p...)
	if _, err := c.relay.WriteToUDPAddrPort(message, c.app()); err != nil {
		return 0, fmt.Errorf("send to socks5 app: %w", err)
	}
	return len(p), nil
}

// Close implements net.PacketConn; the association goes on.
func (c *socksPackets) Close() error {
	c.deadline.Lock()
	defer c.deadline.Unlock()
	if !c.closed.Swap(true) {
		c.relay.SetReadDeadline(time.Unix(1, 0)) // wakes ReadFrom
	}
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *socksPackets) LocalAddr() net.Addr { return c.relay.LocalAddr() }

// SetDeadline implements net.PacketConn; writes do not block.
func (c *socksPackets) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (c *socksPackets) SetReadDeadline(t time.Time) error {
	c.deadline.Lock()
	defer c.deadline.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.relay.SetReadDeadline(t)
}

// SetWriteDeadline implements net.PacketConn; writes do not block.
func (c *socksPackets) SetWriteDeadline(time.Time) error { return nil }
