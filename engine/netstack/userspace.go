package netstack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	gvisorNIC tcpip.NICID = 1

	// maxHeldSYNs bounds the TCP connections whose SYN waits for the Handler.
	// Beyond it SYNs are ignored, and the app's kernel repeats them.
	maxHeldSYNs = 8192

	// timeWait is short because no segment can be late: the "network" is one
	// TUN device in this machine.
	timeWait = time.Second

	// synRetries SYN-ACKs take 1+2+4 s: an app that has gone away answers with
	// a reset at once, so only a vanished network namespace waits that long.
	synRetries = 2

	tcpSendBytes    = 1 << 20 // buffer towards the app, to start from
	tcpSendMaxBytes = 4 << 20 // buffer towards the app, where auto-tuning ends
	// tcpReceiveBytes is the buffer for what an app has sent, to start from, and
	// tcpReceiveMaxBytes where auto-tuning ends; it grows only while the Handler
	// reads. The window is half of it, since gVisor keeps the other half for its
	// own structures.
	tcpReceiveBytes    = 256 << 10
	tcpReceiveMaxBytes = (1<<16 - 1) << tcpWindowScale
	tcpWindowScale     = 5 // RFC 7323; what gVisor makes of tcpReceiveMaxBytes
)

// userspace is the path that works on every system: gVisor terminates TCP, and
// reassembles and fragments IP; UDP and ICMP are a few lines of ours above it.
//
//	TUN ─read─► gvisorLink ─► IP ─┬─► TCP Forwarder ─► heldSYN ─► HandleStream
//	 ▲                            ├─► gvisorUDP ─► gvisorSession ─► HandlePackets
//	 └──write── gvisorLink ◄──────┴─► echo
//
// The NIC has no address: it is promiscuous (takes packets for any destination)
// and spoofing (answers from any source).
type userspace struct {
	opts   Options
	close  func() error // closes the device, once
	closed chan struct{}
	chunks sync.Pool // *[chunkBytes]byte
}

func newUserspace(o Options) (*userspace, error) {
	if o.MTU < header.IPv6MinimumMTU || o.MTU > 65535 {
		return nil, fmt.Errorf("mtu %d: want %d to 65535", o.MTU, header.IPv6MinimumMTU)
	}
	u := &userspace{opts: o, closed: make(chan struct{})}
	u.close = sync.OnceValue(func() error {
		close(u.closed)
		return o.Device.Close()
	})
	return u, nil
}

// Close closes the device, which ends Run. It is idempotent.
func (u *userspace) Close() error { return u.close() }

// Run carries packets until ctx ends or the device is closed; it returns nil
// then, and an error if the device fails. All flows have ended and all
// goroutines are gone when it returns.
func (u *userspace) Run(ctx context.Context) error {
	defer u.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	link, err := u.newLink()
	if err != nil {
		return err
	}
	flows := &gate{}
	s, sessions, err := u.newStack(ctx, link, flows)
	if err != nil {
		return err
	}

	var loops sync.WaitGroup
	loops.Go(func() { sessions.expire(ctx) })
	loops.Go(func() { // once ctx has ended, flows get flow.EndWithin to say goodbye
		<-ctx.Done()
		drained := flows.shut()
		select {
		case <-drained:
		case <-u.closed:
		case <-time.After(flow.EndWithin):
		}
		u.close()
	})

	in := &inlet{stack: s, to: link.dispatcher(), closed: u.closed, waiting: make(chan struct{}, maxWaitingSYNs)}
	err = link.run(in.deliver)
	select {
	case <-u.closed:
		err = nil // we closed it ourselves
	default:
	}
	cancel()
	link.Close()
	u.close() // also of a device that failed: no SYN waits any longer
	in.waits.Wait()
	sessions.closeAll()
	s.Close() // what is still open now is cut off, so that no flow outlasts the device
	<-flows.shut()
	s.Wait()
	loops.Wait()
	return err
}

// newLink is on the device's raw queues, where it has them.
func (u *userspace) newLink() (gvisorLink, error) {
	if mq, ok := u.opts.Device.(platform.MultiQueue); ok && len(mq.Queues()) > 0 {
		l, err := newRawLink(mq.Queues(), u.opts.MTU, u.close)
		if l != nil || err != nil {
			return l, err
		}
	}
	return newDeviceLink(u.opts.Device, u.opts.MTU), nil
}

// newStack makes the gVisor stack and attaches it to link. ctx is given to the
// Handler with every flow.
func (u *userspace) newStack(ctx context.Context, link gvisorLink, flows *gate) (*stack.Stack, *gvisorUDP, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	if err := tuneTCP(s); err != nil {
		s.Destroy()
		return nil, nil, err
	}

	// Handlers first: once the NIC exists, a packet without one would be
	// answered with a reset.
	fwd := tcp.NewForwarder(s, tcpReceiveBytes, maxHeldSYNs, func(r *tcp.ForwarderRequest) {
		if !flows.enter() {
			r.Complete(true)
			return
		}
		defer flows.leave()
		u.serveTCP(ctx, r)
	})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return !answerable(id) || fwd.HandlePacket(id, pkt)
	})
	sessions := newGvisorUDP(s, flows, u.opts.Handler)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		sessions.deliver(ctx, id, pkt)
		return true
	})
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, func(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return echo4(s, pkt)
	})
	s.SetTransportProtocolHandler(icmp.ProtocolNumber6, func(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return echo6(s, pkt)
	})

	if err := attach(s, link); err != nil {
		s.Destroy()
		return nil, nil, err
	}
	return s, sessions, nil
}

func attach(s *stack.Stack, link gvisorLink) error {
	if err := s.CreateNIC(gvisorNIC, link); err != nil {
		return fmt.Errorf("create nic: %s", err)
	}
	if err := s.SetPromiscuousMode(gvisorNIC, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %s", err)
	}
	if err := s.SetSpoofing(gvisorNIC, true); err != nil {
		return fmt.Errorf("set spoofing: %s", err)
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: gvisorNIC},
		{Destination: header.IPv6EmptySubnet, NIC: gvisorNIC},
	})
	return nil
}

// tuneTCP sets what is right for a link without loss and with next to no delay.
func tuneTCP(s *stack.Stack) error {
	var (
		sack     = tcpip.TCPSACKEnabled(true)
		moderate = tcpip.TCPModerateReceiveBufferOption(true)
		cubic    = tcpip.CongestionControlOption("cubic")
		recovery = tcpip.TCPRecovery(0) // RACK takes the reordering of parallel writers for loss
		wait     = tcpip.TCPTimeWaitTimeoutOption(timeWait)
		retries  = tcpip.TCPSynRetriesOption(synRetries)
		receive  = tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpReceiveBytes, Max: tcpReceiveMaxBytes}
		send     = tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpSendBytes, Max: tcpSendMaxBytes}
	)
	var errs []error
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &cubic, &recovery, &wait, &retries, &receive, &send} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			errs = append(errs, fmt.Errorf("set %T: %s", opt, err))
		}
	}
	return errors.Join(errs...)
}

// gate counts the flows that are open, and lets no more in once it is shut.
type gate struct {
	mu     sync.Mutex
	open   int           // guarded by mu
	gone   chan struct{} // guarded by mu; nil until shut, closed when open is 0 then
	isGone bool          // guarded by mu; gone has been closed
}

// enter counts one flow, unless the gate is shut.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone != nil {
		return false
	}
	g.open++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	g.check()
}

// shut lets nothing in from now on; the channel is closed when all have left.
func (g *gate) shut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone == nil {
		g.gone = make(chan struct{})
	}
	g.check()
	return g.gone
}

func (g *gate) check() {
	if g.gone != nil && g.open == 0 && !g.isGone {
		g.isGone = true
		close(g.gone)
	}
}
