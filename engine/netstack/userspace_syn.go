package netstack

import (
	"encoding/binary"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// maxSegment is the longest segment towards an app, in bytes of payload; the
// device takes packets of many segments. gVisor does not repeat a lost segment
// into a window that is open but shorter than a segment, and does not ask again:
// with segments of 64 KiB an app with a small receive buffer (or a full one) loses
// one sooner or later, and waits for good (gVisor 20260905; snd.go,
// maybeSendSegment). A kernel offers no less than 1460 bytes, or none.
const maxSegment = 1460

const (
	// resetWithin is how long a SYN waits for the reset of the connection before
	// it: gVisor needs microseconds for it, unless there is none.
	resetWithin = 100 * time.Millisecond
	// maxWaitingSYNs bounds the SYNs that wait so. More are dropped, and the app's
	// kernel repeats them after a second.
	maxWaitingSYNs = 64
)

// inlet gives what comes from the device to gVisor. It is used by all readers of
// the device, and holds none of them up.
type inlet struct {
	stack   *stack.Stack
	to      stack.NetworkDispatcher
	closed  <-chan struct{} // of the device
	waiting chan struct{}   // of maxWaitingSYNs; one in it for each SYN that waits
	waits   sync.WaitGroup  // their goroutines
}

// deliver gives pkt to gVisor, a SYN when what must be done first is done.
func (in *inlet) deliver(pkt *stack.PacketBuffer) {
	head, _ := pkt.Data().PullUp(min(pkt.Data().Size(), smallPacket)) // all headers
	proto, id, segment, ok := parseSYN(head)
	if ok {
		clampMSS(segment)
		if !forgetOldTuple(in.stack, proto, id, false) {
			in.wait(pkt, id)
			return
		}
	}
	in.to.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
}

// wait delivers a SYN later. Whoever has raw sockets can send one for a connection
// that lives: in the reader, ten a second stopped all others.
func (in *inlet) wait(pkt *stack.PacketBuffer, id stack.TransportEndpointID) {
	select {
	case in.waiting <- struct{}{}:
	default:
		return
	}
	pkt.IncRef()
	in.waits.Go(func() {
		defer func() { pkt.DecRef(); <-in.waiting }()
		begin := time.Now()
		for pause := 50 * time.Microsecond; !forgetOldTuple(in.stack, pkt.NetworkProtocolNumber, id, time.Since(begin) > resetWithin); pause *= 2 {
			select {
			case <-in.closed:
				return
			case <-time.After(pause):
			}
		}
		in.to.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
	})
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
// It is false if the SYN is to wait, unless that is late: a connection that its
// app has reset may still be there, its RST in a queue before the SYN, and gVisor
// answers a SYN that comes before it is dealt with with a reset of its own.
func forgetOldTuple(s *stack.Stack, proto tcpip.NetworkProtocolNumber, id stack.TransportEndpointID, late bool) bool {
	ep, ok := s.FindTransportEndpoint(proto, tcp.ProtocolNumber, id, gvisorNIC).(*tcp.Endpoint)
	if !ok {
		return true
	}
	switch state := tcp.EndpointState(ep.State()); state {
	case tcp.StateEstablished, tcp.StateError, tcp.StateCloseWait:
		if !late {
			return false
		}
		if state != tcp.StateCloseWait {
			return true
		}
	case tcp.StateFinWait1, tcp.StateFinWait2, tcp.StateClosing, tcp.StateTimeWait, tcp.StateLastAck:
	default:
		return true
	}
	ep.Abort() // its reset acknowledges nothing of the new SYN, so the app ignores it (RFC 9293 section 3.10.7.3)
	return true
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
