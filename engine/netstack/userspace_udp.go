package netstack

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	// udpSweep is how often idle sessions are looked for.
	udpSweep = 5 * time.Second
	// udpSessions bounds the table; when it is full, an old session makes way.
	udpSessions = 4096
	// udpQueue bounds the datagrams of one session, and udpQueueBytes the
	// payload of all sessions, that wait for the Handler; more are dropped.
	udpQueue      = 256
	udpQueueBytes = 16 << 20
)

// gvisorUDP keeps one session per UDP socket of an app, whatever the
// destinations (endpoint-independent mapping, RFC 4787 section 4.1). gVisor's
// own UDP endpoints are not used: they are one per destination.
type gvisorUDP struct {
	stack   *stack.Stack
	flows   *gate
	handler flow.Handler
	queued  atomic.Int64 // bytes that wait in all sessions

	mu       sync.Mutex
	sessions map[netip.AddrPort]*gvisorSession // by the app's address; guarded by mu
}

func newGvisorUDP(s *stack.Stack, flows *gate, h flow.Handler) *gvisorUDP {
	return &gvisorUDP{stack: s, flows: flows, handler: h, sessions: make(map[netip.AddrPort]*gvisorSession)}
}

// deliver queues the datagram in pkt at its session, which it opens if there is
// none. It does not block and does not keep pkt.
func (u *gvisorUDP) deliver(ctx context.Context, id stack.TransportEndpointID, pkt *stack.PacketBuffer) {
	payload, ok := datagramOf(pkt)
	if !ok || !answerable(id) || u.queued.Load()+int64(len(payload)) > udpQueueBytes {
		return
	}
	src, dst := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	d := gvisorDatagram{dst: dst, payload: payload}

	u.mu.Lock()
	s := u.sessions[src]
	if s != nil && s.push(d) {
		u.mu.Unlock()
		return
	}
	if s != nil || !u.flows.enter() { // its queue is full, or we are stopping
		u.mu.Unlock()
		return
	}
	if len(u.sessions) >= udpSessions {
		u.evict()
	}
	s = newGvisorSession(u, src)
	u.sessions[src] = s
	s.push(d)
	u.mu.Unlock()

	go func() { // counted by flows, which Run waits for
		defer u.flows.leave()
		defer s.Close()
		u.handler.HandlePackets(ctx, flow.Flow{
			ID:      flow.NextID(),
			Network: flow.UDP,
			Inbound: flow.TUN,
			Src:     src,
			Dst:     dst,
			Target:  flow.TargetOf(dst),
			Start:   time.Now(),
		}, s)
	}()
}

// datagramOf checks the UDP header of pkt (RFC 768) and copies the payload.
func datagramOf(pkt *stack.PacketBuffer) ([]byte, bool) {
	h := header.UDP(pkt.TransportHeader().Slice())
	if len(h) < header.UDPMinimumSize {
		return nil, false
	}
	ip := pkt.Network()
	length, sum := header.UDPValid(h, pkt.Data().Checksum, uint16(pkt.Data().Size()), pkt.NetworkProtocolNumber,
		ip.SourceAddress(), ip.DestinationAddress(), pkt.RXChecksumValidated)
	if !length || !sum {
		return nil, false
	}
	return pkt.Data().AsRange().ToSlice()[:h.Length()-header.UDPMinimumSize], true
}

// evict closes the longest idle of a few sessions (map order is random): good
// enough to keep those in use, without an order to maintain per datagram. The
// caller holds mu.
func (u *gvisorUDP) evict() {
	var oldest *gvisorSession
	n := 0
	for _, s := range u.sessions {
		if oldest == nil || s.used.Load() < oldest.used.Load() {
			oldest = s
		}
		if n++; n == 16 {
			break
		}
	}
	delete(u.sessions, oldest.app)
	oldest.shut()
}

// expire closes idle sessions until ctx ends.
func (u *gvisorUDP) expire(ctx context.Context) {
	tick := time.NewTicker(udpSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		u.mu.Lock()
		for app, s := range u.sessions {
			if s.idle() > flow.UDPIdle {
				delete(u.sessions, app)
				s.shut()
			}
		}
		u.mu.Unlock()
	}
}

// remove forgets s.
func (u *gvisorUDP) remove(s *gvisorSession) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sessions[s.app] == s {
		delete(u.sessions, s.app)
	}
}

// closeAll closes every session.
func (u *gvisorUDP) closeAll() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.sessions {
		s.shut()
	}
	clear(u.sessions)
}
