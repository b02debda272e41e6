package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// maxPayload is the largest payload of UDP, here without IPv6's jumbograms.
func maxPayload(v6 bool) int { return maxTransport(v6) - udpBytes }

type gvisorDatagram struct {
	dst     netip.AddrPort
	payload []byte
}

// gvisorSession is the net.PacketConn of one app socket: ReadFrom returns what
// the app sent and to whom, WriteTo answers from any address.
type gvisorSession struct {
	udp    *gvisorUDP
	app    netip.AddrPort
	start  time.Time
	used   atomic.Int64 // nanoseconds after start, of the last datagram
	queue  chan gvisorDatagram
	closed chan struct{}
	once   sync.Once
	read   gvisorDeadline

	mu    sync.Mutex
	route *stack.Route // to the app from the address of the last answer; nil if none; guarded by mu
	ended bool         // guarded by mu
}

var (
	_ net.PacketConn = (*gvisorSession)(nil)
	_ flow.Refuser   = (*gvisorSession)(nil)
)

func newGvisorSession(u *gvisorUDP, app netip.AddrPort) *gvisorSession {
	return &gvisorSession{
		udp: u, app: app, start: time.Now(),
		queue:  make(chan gvisorDatagram, udpQueue),
		closed: make(chan struct{}),
	}
}

func (s *gvisorSession) touch() { s.used.Store(int64(time.Since(s.start))) }

func (s *gvisorSession) idle() time.Duration {
	return time.Since(s.start) - time.Duration(s.used.Load())
}

// push queues d; it is false if the queue is full.
func (s *gvisorSession) push(d gvisorDatagram) bool {
	s.udp.queued.Add(int64(len(d.payload)))
	select {
	case s.queue <- d:
		s.touch()
		return true
	default:
		s.udp.queued.Add(-int64(len(d.payload)))
		return false
	}
}

// ReadFrom implements net.PacketConn.
func (s *gvisorSession) ReadFrom(p []byte) (int, net.Addr, error) {
	expired := s.read.expired()
	select { // first, so that neither wins by chance over a datagram that waits
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case <-expired:
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case <-expired:
		return 0, nil, os.ErrDeadlineExceeded
	case d := <-s.queue:
		s.udp.queued.Add(-int64(len(d.payload)))
		return copy(p, d.payload), flow.UDPAddrOf(d.dst), nil
	}
}

// WriteTo implements net.PacketConn: the app receives p as if from had sent it.
func (s *gvisorSession) WriteTo(p []byte, from net.Addr) (int, error) {
	src := flow.AddrPortOf(from)
	if src.Addr().Is4() != s.app.Addr().Is4() || !unicast(src.Addr()) {
		return 0, fmt.Errorf("send to app %s as %v: no address of its family", s.app, from)
	}
	if most := maxPayload(s.app.Addr().Is6()); len(p) > most {
		return 0, fmt.Errorf("send %d bytes to app %s: a datagram holds at most %d", len(p), s.app, most)
	}
	message := make([]byte, header.UDPMinimumSize+len(p))
	copy(message[header.UDPMinimumSize:], p)
	h := header.UDP(message)
	h.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: s.app.Port(), Length: uint16(len(message))})

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, net.ErrClosed
	}
	r, err := s.routeFrom(src.Addr())
	if err == nil {
		sum := checksum.Checksum(message, r.PseudoHeaderChecksum(header.UDPProtocolNumber, uint16(len(message))))
		if sum != 0xffff { // RFC 768: a checksum of 0 is sent as all ones
			sum = ^sum
		}
		h.SetChecksum(sum)
		err = sendIP(r, header.UDPProtocolNumber, message)
	}
	if err != nil {
		return 0, fmt.Errorf("send to app %s as %s: %s", s.app, src, err)
	}
	s.touch()
	return len(p), nil
}

// routeFrom keeps the last route: most sessions talk with one peer. The caller
// holds mu.
func (s *gvisorSession) routeFrom(src netip.Addr) (*stack.Route, tcpip.Error) {
	if s.route != nil {
		if s.route.LocalAddress() == tcpip.AddrFromSlice(src.AsSlice()) {
			return s.route, nil
		}
		s.route.Release()
		s.route = nil
	}
	r, err := routeFrom(s.udp.stack, src, s.app.Addr())
	if err != nil {
		return nil, err
	}
	s.route = r
	return r, nil
}

// Refuse implements flow.Refuser.
func (s *gvisorSession) Refuse(dst netip.AddrPort) {
	portUnreachable(s.udp.stack, s.app, netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()))
}

// Close implements net.PacketConn. The app's next datagram opens a new session.
func (s *gvisorSession) Close() error {
	s.udp.remove(s)
	s.shut()
	return nil
}

// shut ends the session; it is not (or no longer) in the table, or the caller
// takes it out under the table's lock.
func (s *gvisorSession) shut() {
	s.once.Do(func() {
		s.mu.Lock()
		s.ended = true // before closed, so that who reads of the end cannot write any more
		if s.route != nil {
			s.route.Release()
			s.route = nil
		}
		s.mu.Unlock()
		close(s.closed)
		s.read.set(time.Time{})
		for {
			select {
			case d := <-s.queue:
				s.udp.queued.Add(-int64(len(d.payload)))
			default:
				return
			}
		}
	})
}

// LocalAddr implements net.PacketConn: the app's socket, which is what this one
// stands for.
func (s *gvisorSession) LocalAddr() net.Addr { return flow.UDPAddrOf(s.app) }

// SetDeadline implements net.PacketConn; writes do not block.
func (s *gvisorSession) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (s *gvisorSession) SetReadDeadline(t time.Time) error {
	select {
	case <-s.closed:
		return net.ErrClosed
	default:
		s.read.set(t)
		return nil
	}
}

// SetWriteDeadline implements net.PacketConn; writes do not block.
func (s *gvisorSession) SetWriteDeadline(time.Time) error { return nil }

// gvisorDeadline is a point in time that readers can wait for; one that waits
// already follows every change.
type gvisorDeadline struct {
	mu    sync.Mutex
	timer *time.Timer   // guarded by mu; nil if no time is set
	past  chan struct{} // guarded by mu; closed when the time has come
}

func (d *gvisorDeadline) expired() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past == nil {
		d.past = make(chan struct{})
	}
	return d.past
}

// set replaces the deadline; the zero time means none.
func (d *gvisorDeadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.past // its function has run or runs now: the channel is used up
	}
	d.timer = nil
	if d.past == nil || isClosed(d.past) {
		d.past = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	past := d.past
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(past) })
	} else {
		close(past)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
