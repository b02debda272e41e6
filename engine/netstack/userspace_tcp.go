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
