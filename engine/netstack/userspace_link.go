package netstack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// gvisorLink joins the TUN and a gVisor stack.
//
//	rawLink     raw queues: super-packets both ways, checksums left to the kernel
//	deviceLink  tun.Device: packets of at most the MTU
//
// Both write on the goroutine that made the packet: packets of a connection stay
// in order, and who sends faster than the device takes is held back.
type gvisorLink interface {
	stack.LinkEndpoint
	stack.GSOEndpoint
	// run gives the device's packets to deliver, which borrows them, until the
	// device is closed or fails.
	run(deliver func(*stack.PacketBuffer)) error
	dispatcher() stack.NetworkDispatcher
}

// linkState is what a link without link layer has in common with any other: most
// of stack.LinkEndpoint.
type linkState struct {
	mtu  atomic.Uint32
	done chan struct{} // closed by Close

	closeOnce sync.Once
	mu        sync.RWMutex
	attached  stack.NetworkDispatcher // guarded by mu; nil before Attach
}

func (l *linkState) init(mtu int) {
	l.done = make(chan struct{})
	l.mtu.Store(uint32(mtu))
}

func (l *linkState) dispatcher() stack.NetworkDispatcher {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.attached
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *linkState) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attached = d
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *linkState) IsAttached() bool { return l.dispatcher() != nil }

// Close implements stack.NetworkLinkEndpoint: nothing is written any more.
func (l *linkState) Close() { l.closeOnce.Do(func() { close(l.done) }) }

// MTU implements stack.NetworkLinkEndpoint.
func (l *linkState) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements stack.NetworkLinkEndpoint.
func (l *linkState) SetMTU(mtu uint32) { l.mtu.Store(mtu) }

// The rest of stack.NetworkLinkEndpoint: a link without link layer.
func (*linkState) MaxHeaderLength() uint16                 { return 0 }
func (*linkState) LinkAddress() tcpip.LinkAddress          { return "" }
func (*linkState) SetLinkAddress(tcpip.LinkAddress)        {}
func (*linkState) Wait()                                   {}
func (*linkState) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (*linkState) AddHeader(*stack.PacketBuffer)           {}
func (*linkState) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (*linkState) SetOnCloseAction(func())                 {}

// ipVersion is the protocol number of the IP packet p, or 0 if it is none.
func ipVersion(p []byte) tcpip.NetworkProtocolNumber {
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		return header.IPv4ProtocolNumber
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6:
		return header.IPv6ProtocolNumber
	}
	return 0
}

// narrow takes one unit off the receive window that the TCP segment in pkt
// offers; other packets it leaves alone.
//
// gVisor's window ends at a byte, but what it offers is rounded down to a
// multiple of 2^scale (RFC 7323 section 2.2), and so the end that the app sees
// moves back by up to a unit less one byte as data arrive. RFC 7323 section 2.4
// has a receiver go on to accept what it once offered. gVisor does not: it takes
// the last bytes of a window that shuts for bytes beyond it and drops them, and
// with them every ACK of an app that has sent so far, so that both directions
// stand still for good if the Handler answers what it reads
// (gVisor 20260905; rcv.go, acceptable). The app now never knows of the last
// unit, and what it sends is inside gVisor's window at any time.
func narrow(pkt *stack.PacketBuffer) {
	if pkt.TransportProtocolNumber != tcp.ProtocolNumber {
		return
	}
	h := header.TCP(pkt.TransportHeader().Slice())
	if len(h) < header.TCPMinimumSize {
		return
	}
	unit := uint16(1)
	if h.Flags().Contains(header.TCPFlagSyn) {
		unit = 1 << tcpWindowScale // the window of a SYN is not scaled
		// gVisor offers a window that has shut again when it has room for a full
		// segment. What is left of that must still take a full one: else the app's
		// kernel, avoiding silly windows, waits for a timer of 200 ms or more.
		if o := h.Options(); len(o) >= header.TCPOptionMSSLength && o[0] == header.TCPOptionMSS {
			lower(h, header.TCPMinimumSize+2, 2<<tcpWindowScale, !pkt.GSOOptions.NeedsCsum)
		}
	}
	lower(h, header.TCPWinSizeOffset, unit, !pkt.GSOOptions.NeedsCsum)
}

// lower takes by off the number at h[at], but not below 0, and corrects the
// checksum if it is complete (else the kernel sums the header up later).
func lower(h header.TCP, at int, by uint16, complete bool) {
	old := binary.BigEndian.Uint16(h[at:])
	now := old - min(old, by)
	binary.BigEndian.PutUint16(h[at:], now)
	if complete {
		h.SetChecksum(^checksum.Combine(checksum.Combine(^h.Checksum(), ^old), now)) // RFC 1624 section 3
	}
}
