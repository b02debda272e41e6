package netstack

import (
	"context"
	"encoding/binary"
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
	idle, interval := tcpip.KeepaliveIdleOption(flow.KeepAliveIdle), tcpip.KeepaliveIntervalOption(flow.KeepAliveInterval)
	ep.SetSockOpt(&idle) // none can fail on an established endpoint
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, flow.KeepAliveCount)
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
	_ flow.Outbox     = (*gvisorConn)(nil)
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

// Unacked implements flow.Outbox. gVisor tells nobody how much its send buffer
// holds, only if it has room; with one byte in all it has room when it is empty.
func (c *gvisorConn) Unacked() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return true // the FIN is on its way
	case tcp.StateFinWait2:
		return false
	}
	c.ep.SocketOptions().SetSendBufferSize(1, false)
	return c.ep.Readiness(waiter.WritableEvents) == 0
}

// Gone implements flow.Outbox.
func (c *gvisorConn) Gone() bool {
	state := tcp.EndpointState(c.ep.State())
	return state == tcp.StateClose || state == tcp.StateError
}

// maxSegment is the longest segment towards an app, in bytes of payload; the
// device takes packets of many segments. gVisor does not repeat a lost segment
// into a window that is open but shorter than a segment, and does not ask again:
// with segments of 64 KiB an app with a small receive buffer (or a full one) loses
// one sooner or later, and waits for good (gVisor 20260905; snd.go,
// maybeSendSegment). A kernel offers no less than 1460 bytes, or none.
const maxSegment = 1460

// resetWithin is how long a SYN waits for the reset of the connection before it:
// gVisor needs microseconds for it, unless there is none.
const resetWithin = 100 * time.Millisecond

// prepareSYN shows p, before gVisor sees it, to what must be done first if it is
// a SYN.
func prepareSYN(s *stack.Stack, p []byte) {
	proto, id, segment, ok := parseSYN(p)
	if ok {
		clampMSS(segment)
		forgetOldTuple(s, proto, id)
	}
}

// clampMSS lowers the maximum segment size that a SYN announces (RFC 9293
// section 3.7.1) to maxSegment.
func clampMSS(h header.TCP) {
	end := min(int(h.DataOffset()), len(h))
	for i := header.TCPMinimumSize; i+header.TCPOptionMSSLength <= end; {
		switch n := int(h[i+1]); {
		case h[i] == header.TCPOptionEOL:
			return
		case h[i] == header.TCPOptionNOP:
			i++
		case h[i] == header.TCPOptionMSS && n == header.TCPOptionMSSLength:
			if mss := binary.BigEndian.Uint16(h[i+2:]); mss > maxSegment {
				lower(h, i+2, mss-maxSegment, true)
			}
			return
		default:
			i += max(n, 2)
		}
	}
}

// forgetOldTuple makes way for a new connection id, if its addresses and
// ports belong to one that is closing: an app's kernel reuses a port only when it
// is done with it.
//
// gVisor does this for listening endpoints only. From a Forwarder, it drops the
// SYN while the old connection is in TIME-WAIT, or resets it: programs that use
// it stop answering after some thousand quick connections, once source ports
// come round (seen at 7,000 in two of them, BENCH of November 2026).
//
// A connection that its app has reset may still be there, its RST in a queue
// before the SYN: gVisor answers a SYN that comes after it with a reset of its
// own, so the SYN waits until the RST is dealt with.
func forgetOldTuple(s *stack.Stack, proto tcpip.NetworkProtocolNumber, id stack.TransportEndpointID) {
	find := func() (*tcp.Endpoint, tcp.EndpointState) {
		ep, ok := s.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, gvisorNIC).(*tcp.Endpoint)
		if !ok {
			return nil, tcp.StateClose
		}
		return ep, tcp.EndpointState(ep.State())
	}
	ep, state := find()
	for begin := time.Now(); state == tcp.StateEstablished || state == tcp.StateCloseWait || state == tcp.StateError; ep, state = find() {
		if time.Since(begin) > resetWithin {
			break
		}
		time.Sleep(50 * time.Microsecond)
	}
	switch state {
	case tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateClosing, tcp.StateTimeWait, tcp.StateLastAck:
		ep.Abort() // its reset acknowledges nothing of the new SYN, so the app ignores it (RFC 9293 section 3.10.7.3)
	}
}

// parseSYN parses p as far as needed to tell that it is a SYN without ACK, of
// which connection, and where the TCP header is.
func parseSYN(p []byte) (proto tcpip.NetworkProtocolNumber, id stack.TransportEndpointID, segment header.TCP, ok bool) {
	switch proto = ipVersion(p); proto {
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(p)
		n := int(ip.HeaderLength())
		if n < header.IPv4MinimumSize || len(p) < n || ip.TransportProtocol() != tcp.ProtocolNumber || ip.FragmentOffset() != 0 {
			return 0, id, nil, false
		}
		id.RemoteAddress, id.LocalAddress, segment = ip.SourceAddress(), ip.DestinationAddress(), header.TCP(p[n:])
	case header.IPv6ProtocolNumber:
		ip := header.IPv6(p)
		if ip.NextHeader() != uint8(tcp.ProtocolNumber) {
			return 0, id, nil, false
		}
		id.RemoteAddress, id.LocalAddress, segment = ip.SourceAddress(), ip.DestinationAddress(), header.TCP(p[header.IPv6MinimumSize:])
	}
	if len(segment) < header.TCPMinimumSize || segment.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return 0, id, nil, false
	}
	id.RemotePort, id.LocalPort = segment.SourcePort(), segment.DestinationPort()
	return proto, id, segment, true
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
