package netstack

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// tunOffset is the room in front of a packet that tun.Device wants for its own
// header: 10 bytes on Linux (virtio_net_hdr), 4 on macOS.
const tunOffset = 16

// deviceLink reads and writes a tun.Device. It reads as many packets at a time as
// the device gives; it writes each at once, on the goroutine that made it, since
// no device without raw queues takes more than one (wireguard's for Windows and
// macOS have a BatchSize of 1), and a queue in between would cost a switch of
// goroutines a packet.
type deviceLink struct {
	linkState
	dev  tun.Device
	bufs sync.Pool // *[]byte, of tunOffset and a packet
}

var _ gvisorLink = (*deviceLink)(nil)

func newDeviceLink(dev tun.Device, mtu int) *deviceLink {
	l := &deviceLink{dev: dev}
	l.init(mtu)
	l.bufs.New = func() any {
		b := make([]byte, tunOffset+mtu)
		return &b
	}
	return l
}

// run implements gvisorLink.
func (l *deviceLink) run(deliver func(*stack.PacketBuffer)) error {
	batch := max(l.dev.BatchSize(), 1)
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, tunOffset+int(l.MTU()))
	}
	// gVisor's gro package is not used: with segments of a real kernel, 32 MiB
	// stalled after some 100 KiB (November 2026); without it they took 0.8 s.
	for {
		n, err := l.dev.Read(bufs, sizes, tunOffset)
		for i := range n {
			if pkt := inboundPacket(bufs[i][tunOffset : tunOffset+sizes[i]]); pkt != nil {
				deliver(pkt)
				pkt.DecRef()
			}
		}
		if err != nil && !errors.Is(err, tun.ErrTooManySegments) {
			return fmt.Errorf("read tun: %w", err)
		}
	}
}

// inboundPacket copies p; it is nil if p is no IP packet.
func inboundPacket(p []byte) *stack.PacketBuffer {
	proto := ipVersion(p)
	if proto == 0 {
		return nil
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	pkt.NetworkProtocolNumber = proto
	return pkt
}

// WritePackets implements stack.LinkWriter. A packet that the device does not
// take is lost, as on any link.
func (l *deviceLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	b := l.bufs.Get().(*[]byte)
	defer l.bufs.Put(b)
	for i, pkt := range pkts.AsSlice() {
		select {
		case <-l.done:
			return i, &tcpip.ErrClosedForSend{}
		default:
		}
		narrow(pkt)
		n := tunOffset
		views, skip := pkt.AsViewList()
		for v := views.Front(); v != nil; v = v.Next() {
			p := v.AsSlice()
			front := min(skip, len(p))
			skip -= front
			n += copy((*b)[n:], p[front:])
		}
		if _, err := l.dev.Write([][]byte{(*b)[:n]}, tunOffset); errors.Is(err, os.ErrClosed) {
			return i, &tcpip.ErrClosedForSend{}
		}
	}
	return pkts.Len(), nil
}

// SupportedGSO implements stack.GSOEndpoint: gVisor builds large segments once
// and cuts them just above the link.
func (*deviceLink) SupportedGSO() stack.SupportedGSO { return stack.GVisorGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (*deviceLink) GSOMaxSize() uint32 { return stack.GVisorGSOMaxSize }

// Capabilities implements stack.NetworkLinkEndpoint.
func (*deviceLink) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }
