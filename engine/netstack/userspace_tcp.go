package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Keep-alives find apps that vanished without a word (a container that was
// frozen and removed); a live app's kernel answers them by itself.
const (
	keepaliveIdle     = 5 * time.Minute
	keepaliveInterval = 30 * time.Second
)

// chunkBytes is how much of what an app has sent is handed on at once.
const chunkBytes = 128 << 10

// serveTCP hands the connection that r asks for to the Handler, and returns when the flow
// has ended.
func (u *userspace) serveTCP(ctx context.Context, r *tcp.ForwarderRequest) {
	id := r.ID()
	dst := addrPort(id.LocalAddress, id.LocalPort)
	held := &heldSYN{request: r, chunks: &u.chunks}
	u.opts.Handler.HandleStream(ctx, flow.Flow{
		ID:      flow.NextID(),
		Network: flow.TCP,
		Inbound: flow.TUN,
		Src:     addrPort(id.RemoteAddress, id.RemotePort),
		Dst:     dst,
		Target:  flow.TargetOf(dst),
		Start:   time.Now(),
	}, held)
	held.Reject(flow.Unreachable) // no effect, unless the Handler forgot
}

// heldSYN is a TCP connection whose SYN has not been answered yet.
type heldSYN struct {
	request *tcp.ForwarderRequest
	chunks  *sync.Pool // *[chunkBytes]byte
	decided atomic.Bool
}

var _ flow.Pending = (*heldSYN)(nil)

// Accept implements flow.Pending: it answers the SYN and waits for the app's ACK.
func (p *heldSYN) Accept() (flow.StreamConn, error) {
	if p.decided.Swap(true) {
		return nil, fmt.Errorf("accept tcp: %w", net.ErrClosed)
	}
	id := p.request.ID()
	queue := new(waiter.Queue)
	ep, err := p.request.CreateEndpoint(queue)
	p.request.Complete(err != nil) // an app that still waits is told
	if err != nil {
		return nil, fmt.Errorf("accept tcp from %s: %s", addrPort(id.RemoteAddress, id.RemotePort), err)
	}
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	ep.SetSockOpt(&idle) // neither can fail on an established endpoint
	ep.SetSockOpt(&interval)
	ep.SocketOptions().SetKeepAlive(true)
	return &gvisorConn{TCPConn: gonet.NewTCPConn(queue, ep), ep: ep, chunks: p.chunks}, nil
}

// Reject implements flow.Pending: every reason is told by a reset, the only
// answer that ends connect(2) at once on every system.
func (p *heldSYN) Reject(flow.Reason) {
	if !p.decided.Swap(true) {
		p.request.Complete(true)
	}
}

// gvisorConn is a *gonet.TCPConn that can also be reset, and is relayed from
// without a buffer while it is idle.
type gvisorConn struct {
	*gonet.TCPConn
	ep     tcpip.Endpoint
	chunks *sync.Pool // *[chunkBytes]byte
}

var (
	_ flow.StreamConn = (*gvisorConn)(nil)
	_ io.WriterTo     = (*gvisorConn)(nil)
)

// WriteTo implements io.WriterTo: it copies to w until the app has closed its
// half or an error of either side. It waits with one byte of room, so that
// thousands of idle flows hold no buffers.
func (c *gvisorConn) WriteTo(w io.Writer) (total int64, err error) {
	first := make([]byte, 1)
	for {
		if _, err := c.Read(first); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return total, err
		}
		n, err := c.writeChunk(w, first[0])
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// writeChunk writes first and what else has come.
func (c *gvisorConn) writeChunk(w io.Writer, first byte) (int, error) {
	b, ok := c.chunks.Get().(*[chunkBytes]byte)
	if !ok {
		b = new([chunkBytes]byte)
	}
	defer c.chunks.Put(b)
	b[0] = first
	rest := tcpip.SliceWriter(b[1:])
	in, _ := c.ep.Read(&rest, tcpip.ReadOptions{}) // does not block; an error will come again
	c.ep.ModerateRecvBuf(in.Count)
	return w.Write(b[:1+in.Count])
}

// SetLinger is like (*net.TCPConn).SetLinger: with 0, Close sends a reset.
func (c *gvisorConn) SetLinger(sec int) error {
	c.ep.SocketOptions().SetLinger(tcpip.LingerOption{
		Enabled: sec >= 0,
		Timeout: time.Duration(max(sec, 0)) * time.Second,
	})
	return nil
}

// forgetOldTuple makes way for the connection that p opens, if p is a SYN and
// its addresses and ports belong to a connection that is closing: an app's
// kernel reuses a port only when it is done with it.
//
// gVisor does this for listening endpoints only. From a Forwarder, it drops the
// SYN while the old connection is in TIME-WAIT, or resets it: programs that use
// it stop answering after some thousand quick connections, once source ports
// come round (seen at 7,000 in two of them, BENCH of November 2026).
func forgetOldTuple(s *stack.Stack, p []byte) {
	proto, id, ok := synTuple(p)
	if !ok {
		return
	}
	ep, ok := s.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, gvisorNIC).(*tcp.Endpoint)
	if !ok {
		return
	}
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateClosing, tcp.StateTimeWait, tcp.StateLastAck:
		ep.Abort() // its reset acknowledges nothing of the new SYN, so the app ignores it (RFC 9293 section 3.10.7.3)
	}
}

// synTuple parses p as far as needed to tell that it is a SYN without ACK, and
// of which connection.
func synTuple(p []byte) (tcpip.NetworkProtocolNumber, stack.TransportEndpointID, bool) {
	var (
		none     stack.TransportEndpointID
		proto    tcpip.NetworkProtocolNumber
		src, dst tcpip.Address
		segment  header.TCP
	)
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		ip := header.IPv4(p)
		n := int(ip.HeaderLength())
		if n < header.IPv4MinimumSize || len(p) < n || ip.TransportProtocol() != tcp.ProtocolNumber || ip.FragmentOffset() != 0 {
			return 0, none, false
		}
		proto, src, dst, segment = header.IPv4ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), header.TCP(p[n:])
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6:
		ip := header.IPv6(p)
		if ip.NextHeader() != uint8(tcp.ProtocolNumber) {
			return 0, none, false
		}
		proto, src, dst, segment = header.IPv6ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), header.TCP(p[header.IPv6MinimumSize:])
	}
	if len(segment) < header.TCPMinimumSize || segment.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return 0, none, false
	}
	return proto, stack.TransportEndpointID{
		LocalAddress: dst, LocalPort: segment.DestinationPort(),
		RemoteAddress: src, RemotePort: segment.SourcePort(),
	}, true
}

// answerable reports whether a packet is of one host for another, so that an
// answer to it goes to who asked, and nowhere else.
func answerable(id stack.TransportEndpointID) bool {
	src, dst := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	return unicast(src.Addr()) && unicast(dst.Addr()) && src.Addr() != dst.Addr() &&
		src.Port() != 0 && dst.Port() != 0
}

// unicast is false for "this host", multicast and the limited broadcast.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(ip, port)
}
