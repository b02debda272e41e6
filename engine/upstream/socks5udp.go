package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// maxSOCKSHeaderBytes is the longest header of a datagram: RSV, FRAG, ATYP,
// length, name, port.
const maxSOCKSHeaderBytes = 3 + 1 + 1 + 255 + 2

const maxDatagramBytes = 65507 // payload of UDP over IPv4

// DialPackets opens an association (RFC 1928 section 7), which lives as long
// as its TCP connection does.
func (d *socks5) DialPackets(ctx context.Context, _ flow.Target) (net.PacketConn, error) {
	// We cannot know the address that our datagrams will come from, so the
	// request names none (RFC 1928 section 4).
	control, bound, err := d.request(ctx, socksAssociate, flow.Target{Addr: netip.IPv4Unspecified()})
	if err != nil {
		return nil, err
	}
	relay, err := d.relayAddr(ctx, control, bound)
	if err != nil {
		abort(control)
		return nil, err
	}
	// A connected socket hears nobody but the relay, and saves looking up the
	// route for each datagram.
	nd := net.Dialer{Control: d.net.opts.Control}
	c, err := nd.DialContext(ctx, "udp", relay.String())
	if err != nil {
		abort(control)
		return nil, fault(Unreachable, fmt.Errorf("open UDP socket: %w", err), "")
	}
	a := &association{UDPConn: c.(*net.UDPConn), control: control, dialer: d}
	if a.raw, err = a.SyscallConn(); err != nil {
		_ = a.UDPConn.Close()
		abort(control)
		return nil, fault(Unreachable, fmt.Errorf("open UDP socket: %w", err), "")
	}
	a.alone.Store(!d.prepare(a.raw))
	a.watching.Add(1)
	go a.watch()
	return a, nil
}

// refusesUDP says that err, of an association, is a proxy's word that it gives
// none: replies 2 (not allowed) and 7 (command not supported). The request names
// no target that could be meant instead.
func refusesUDP(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == Target && (e.Status == 2 || e.Status == 7)
}

// relayAddr is where datagrams go: what the proxy said, with its own address
// in place of one that leads nowhere from here.
func (d *socks5) relayAddr(ctx context.Context, control *net.TCPConn, bound flow.Target) (netip.AddrPort, error) {
	if bound.Port == 0 {
		return netip.AddrPort{}, fault(Protocol, errors.New("SOCKS5 UDP ASSOCIATE: the proxy named port 0"), "the proxy may not support UDP")
	}
	addr := bound.Addr
	if bound.Name != "" {
		addrs, err := d.net.resolve(ctx, bound.Name)
		if err != nil {
			return netip.AddrPort{}, fault(Protocol, fmt.Errorf("SOCKS5 UDP ASSOCIATE: relay %q: %w", clip(bound.Name, 64), err), "")
		}
		addr = pickUDP(addrs)
	}
	addr = reachable(addr, flow.AddrPortOf(control.RemoteAddr()).Addr())
	if addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.AddrPort{}, fault(Protocol, fmt.Errorf("SOCKS5 UDP ASSOCIATE: the proxy named relay %v", addr), "")
	}
	return netip.AddrPortFrom(addr, bound.Port), nil
}

// reachable is said, unless that is no address or one that only means the
// proxy's own network: a proxy behind NAT does not know better, and a hostile
// one could have us send into this machine's network. Then it is the proxy's.
func reachable(said, proxy netip.Addr) netip.Addr {
	reach := func(a netip.Addr) int {
		switch {
		case !a.IsValid() || a.IsUnspecified():
			return 0
		case a.IsLoopback():
			return 1
		case a.IsLinkLocalUnicast() || a.IsPrivate():
			return 2
		}
		return 3
	}
	if reach(said) < reach(proxy) {
		return proxy
	}
	return said
}

// association is the app-side view of one UDP ASSOCIATE.
type association struct {
	*net.UDPConn // connected to the relay
	raw          syscall.RawConn
	control      *net.TCPConn
	dialer       *socks5
	alone        atomic.Bool                 // the kernel does not cut messages into datagrams
	only         atomic.Pointer[flow.Target] // that was sent to; nil before the first
	several      atomic.Bool                 // others were, too
	watching     sync.WaitGroup
	closing      sync.Once
}

var _ net.PacketConn = (*association)(nil)

// watch ends the association when the proxy closes the TCP connection. What
// the proxy says on it is dropped.
func (a *association) watch() {
	defer a.watching.Done()
	_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{a.control}, make([]byte, 64))
	_ = a.UDPConn.Close()
}

// Close ends the association and waits for its goroutine. It is idempotent.
func (a *association) Close() error {
	a.closing.Do(func() {
		_ = a.control.Close()
		_ = a.UDPConn.Close()
	})
	a.watching.Wait()
	return nil
}

// WriteTo sends to a *net.UDPAddr or a NameAddr.
func (a *association) WriteTo(p []byte, to net.Addr) (int, error) {
	if len(p) > maxDatagramBytes {
		return 0, fmt.Errorf("send datagram: %d bytes are too many", len(p))
	}
	var t flow.Target
	switch to := to.(type) {
	case NameAddr:
		t = flow.Target{Name: to.Name, Port: to.Port}
	case *net.UDPAddr:
		t = flow.TargetOf(to.AddrPort())
	default:
		return 0, fmt.Errorf("send datagram: address of type %T is neither IP nor name", to)
	}
	if !nameable(t) {
		return 0, errName
	}
	a.note(t)
	b := append(appendSOCKSAddr(make([]byte, 3, maxSOCKSHeaderBytes+len(p)), t), p...)
	if _, err := a.Write(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

// note remembers whom the association speaks to, as long as that is one.
func (a *association) note(t flow.Target) {
	if a.several.Load() {
		return
	}
	if only := a.only.Load(); only != nil {
		a.several.Store(*only != t)
		return
	}
	first := t // alone on the heap
	a.only.CompareAndSwap(nil, &first)
}

// source is who a datagram is from that t is said to be the source of. Some
// relays name nobody (0.0.0.0:0), or by name whom we named by address: then it
// is from the only one that was spoken to; not known if there are several.
func (a *association) source(t flow.Target) (flow.Target, bool) {
	only := a.only.Load()
	switch {
	case t.Name == "" && !t.Addr.IsUnspecified() && t.Port != 0,
		t.Name != "" && (only == nil || a.several.Load() || only.Name != "" || only.Port != t.Port):
		return t, true
	case only == nil || a.several.Load():
		return t, false
	}
	return *only, true
}

var errName = errors.New("send datagram: no address, and no name that fits into a header")

// nameable reports whether a SOCKS5 header can say t.
func nameable(t flow.Target) bool {
	return t.Name == "" && t.Addr.IsValid() || t.Name != "" && len(t.Name) <= maxHostBytes
}

// ReadFrom gives a datagram from the relay and whom the relay had it from: a
// *net.UDPAddr, or a NameAddr where it says a name. Anything else is dropped
// and counted. p has to have room for the header too: a datagram of more than
// len(p) minus 262 bytes may be cut.
func (a *association) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, err := a.Read(p)
		if err != nil {
			return 0, nil, err
		}
		t, payload, ok := parseSOCKSDatagram(p[:n])
		if ok {
			t, ok = a.source(t)
		}
		if ok {
			return copy(p, payload), addrOf(t), nil
		}
		a.dialer.stats.udpBogus.Add(1)
	}
}

func addrOf(t flow.Target) net.Addr {
	if t.Name != "" {
		return NameAddr{Name: t.Name, Port: t.Port}
	}
	return flow.UDPAddrOf(t.AddrPort())
}

// parseSOCKSDatagram takes the header off (RFC 1928 section 7). Fragments are
// refused, which the RFC allows and everybody does.
func parseSOCKSDatagram(b []byte) (t flow.Target, payload []byte, ok bool) {
	if len(b) < 4 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return t, nil, false
	}
	n, rest := 0, b[4:]
	switch b[3] {
	case socksIPv4:
		n = 4
	case socksIPv6:
		n = 16
	case socksDomain:
		if len(rest) == 0 || rest[0] == 0 {
			return t, nil, false
		}
		n, rest = int(rest[0]), rest[1:]
	default:
		return t, nil, false
	}
	if len(rest) < n+2 {
		return t, nil, false
	}
	if b[3] == socksDomain {
		t.Name = string(rest[:n])
	} else {
		a, _ := netip.AddrFromSlice(rest[:n])
		t.Addr = a.Unmap()
	}
	t.Port = uint16(rest[n])<<8 | uint16(rest[n+1])
	return t, rest[n+2:], true
}
