package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	gsoTCPv4 = 1 // VIRTIO_NET_HDR_GSO_TCPV4
	gsoTCPv6 = 4 // VIRTIO_NET_HDR_GSO_TCPV6

	// smallPacket is the longest packet that is copied into memory of its own
	// size: an ACK must not hold a view for more.
	smallPacket = 256
	// maxParts is how many pieces of memory go into one write; a packet of more
	// (many small writes by the Handler, merged by TCP) is copied into one.
	maxParts = 64
)

// rawLink reads and writes the raw queues of a TUN. A packet is read straight
// into gVisor's pooled memory and written straight from it.
//
// All packets of a connection leave by the same queue, and so the kernel brings
// those of the other direction by it (tun_automq_select_queue): they stay in
// order.
type rawLink struct {
	linkState
	queues []rawQueue
	close  func() error // ends the reads of all queues
}

var _ gvisorLink = (*rawLink)(nil)

// newRawLink is nil without an error if the queues are not descriptors.
func newRawLink(queues []platform.Queue, mtu int, close func() error) (*rawLink, error) {
	l := &rawLink{close: close}
	l.init(mtu)
	for _, q := range queues {
		c, ok := q.(syscall.Conn)
		if !ok {
			return nil, nil
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("descriptor of a tun queue: %w", err)
		}
		l.queues = append(l.queues, rawQueue{raw})
	}
	return l, nil
}

// run implements gvisorLink.
func (l *rawLink) run(deliver func(*stack.PacketBuffer)) error {
	var (
		loops sync.WaitGroup
		first error
		once  sync.Once
	)
	for _, q := range l.queues {
		loops.Go(func() {
			err := l.read(q, deliver)
			once.Do(func() { first = err })
			l.close() // so that the others end too
		})
	}
	loops.Wait()
	return first
}

// read gives the packets of q to deliver until q fails.
func (l *rawLink) read(q rawQueue, deliver func(*stack.PacketBuffer)) error {
	var in inbox
	defer in.release()
	r := q.reader()
	for {
		n, err := r.readv(in.parts())
		if err != nil {
			return fmt.Errorf("read tun queue: %w", err)
		}
		pkt := in.take(n)
		if pkt == nil {
			continue
		}
		deliver(pkt)
		pkt.DecRef()
	}
}

// inboxSizes are the pieces of memory that a packet is read into: a packet of
// more than smallPacket bytes holds some twice its length, or 2 KiB.
var inboxSizes = [...]int{2 << 10, 16 << 10, 32 << 10, 16 << 10}

// inbox is the memory that the next packet is read into.
type inbox struct {
	vnet  [vnetBytes]byte
	views [len(inboxSizes)]*buffer.View // nil where the last packet took it
	bytes [1 + len(inboxSizes)][]byte
}

// parts is room for a virtio_net_hdr and a packet.
func (in *inbox) parts() [][]byte {
	in.bytes[0] = in.vnet[:]
	for i, v := range in.views {
		if v == nil {
			in.views[i] = buffer.NewViewSize(inboxSizes[i])
			in.bytes[i+1] = in.views[i].AsSlice()
		}
	}
	return in.bytes[:]
}

// take is the packet in the first n bytes of parts; nil if it is none that may
// come in. The caller owns it.
func (in *inbox) take(n int) *stack.PacketBuffer {
	n -= vnetBytes
	if n <= 0 {
		return nil
	}
	proto := ipVersion(in.bytes[1][:min(n, inboxSizes[0])])
	if proto == 0 {
		return nil
	}
	var data buffer.Buffer
	if n <= smallPacket {
		data = buffer.MakeWithData(in.bytes[1][:n])
	} else {
		for i := 0; n > 0; i++ {
			v := in.views[i]
			in.views[i] = nil
			v.CapLength(n)
			n -= v.Size()
			data.Append(v)
		}
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: data})
	pkt.NetworkProtocolNumber = proto
	if in.vnet[0]&(needsCsum|dataValid) == 0 && !checksumValid(pkt) {
		pkt.DecRef()
		return nil
	}
	return pkt
}

func (in *inbox) release() {
	for _, v := range in.views {
		v.Release()
	}
}

// checksumValid checks the TCP or UDP checksum of pkt, for which gVisor takes
// the device's word. Fragments, and what hides behind extension headers, pass
// unchecked: the kernel has checked them, or an app of this machine made them.
func checksumValid(pkt *stack.PacketBuffer) bool {
	head, _ := pkt.Data().PullUp(min(pkt.Data().Size(), smallPacket))
	var (
		proto    tcpip.TransportProtocolNumber
		src, dst tcpip.Address
		from, to int // of the segment
	)
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		ip := header.IPv4(head)
		if ip.More() || ip.FragmentOffset() != 0 {
			return true
		}
		proto, src, dst = ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress()
		from, to = int(ip.HeaderLength()), int(ip.TotalLength())
	} else {
		ip := header.IPv6(head)
		proto, src, dst = tcpip.TransportProtocolNumber(ip.NextHeader()), ip.SourceAddress(), ip.DestinationAddress()
		from, to = header.IPv6MinimumSize, header.IPv6MinimumSize+int(ip.PayloadLength())
	}
	if to > pkt.Data().Size() || from+header.UDPMinimumSize > min(to, len(head)) {
		return false
	}
	switch {
	case proto == tcp.ProtocolNumber:
	case proto != udp.ProtocolNumber:
		return true
	case header.UDP(head[from:]).Checksum() == 0 && pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber:
		return true // RFC 768: the sender made none
	}
	pkt.Data().CapLength(to)
	sum := header.PseudoHeaderChecksum(proto, src, dst, uint16(to-from))
	return checksum.Combine(sum, pkt.Data().ChecksumAtOffset(from)) == 0xffff
}

// WritePackets implements stack.LinkWriter. A packet that the device does not
// take is lost, as on any link.
func (l *rawLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range pkts.AsSlice() {
		narrow(pkt)
		err := l.queues[pkt.Hash%uint32(len(l.queues))].write(pkt)
		if errors.Is(err, os.ErrClosed) {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

// write writes pkt with its virtio_net_hdr. It may be called by many goroutines
// at a time.
func (q rawQueue) write(pkt *stack.PacketBuffer) error {
	var (
		vnet  = vnetHeader(pkt)
		room  [8][]byte
		parts = append(room[:0], vnet[:])
	)
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		p := v.AsSlice()
		n := min(skip, len(p))
		skip -= n
		if n < len(p) {
			parts = append(parts, p[n:])
		}
	}
	if len(parts) > maxParts {
		whole := pkt.ToView()
		defer whole.Release()
		parts = append(room[:0], vnet[:], whole.AsSlice())
	}
	return q.writev(parts)
}

// vnetHeader tells the kernel what is left to do for pkt: the checksum, and to
// cut it into segments.
func vnetHeader(pkt *stack.PacketBuffer) (h [vnetBytes]byte) {
	gso := &pkt.GSOOptions
	if gso.Type == stack.GSONone {
		return h
	}
	// With the length of the headers, the kernel looks for no 64 KiB in a row.
	binary.NativeEndian.PutUint16(h[2:], uint16(pkt.HeaderSize()))
	if gso.NeedsCsum {
		h[0] = needsCsum
		binary.NativeEndian.PutUint16(h[6:], gso.L3HdrLen)
		binary.NativeEndian.PutUint16(h[8:], gso.CsumOffset)
	}
	if pkt.Data().Size() > int(gso.MSS) {
		h[1] = gsoTCPv4
		if gso.Type == stack.GSOTCPv6 {
			h[1] = gsoTCPv6
		}
		binary.NativeEndian.PutUint16(h[4:], gso.MSS)
	}
	return h
}

// SupportedGSO implements stack.GSOEndpoint: the kernel cuts segments up.
func (*rawLink) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (*rawLink) GSOMaxSize() uint32 { return packetBytes }

// Capabilities implements stack.NetworkLinkEndpoint: checksums of what comes in
// are good (see checksumValid).
func (*rawLink) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}
