package netstack

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// tunOffset is the room in front of a packet that tun.Device wants for its
	// own header: 10 bytes on Linux (virtio_net_hdr), 4 on macOS.
	tunOffset = 16
	// linkQueue is how many packets may wait for the device, and writeBatch how
	// many go into one Write, which coalesces them on Linux.
	linkQueue  = 1024
	writeBatch = 64
	// writeBufferBytes is the room that the device needs to coalesce segments
	// into one super-packet in place.
	writeBufferBytes = tunOffset + 65535
)

// gvisorLink joins a tun.Device and a gVisor stack. When the device is slower
// than the stack, WritePackets waits: nothing is lost in between, and TCP's
// senders are held back.
type gvisorLink struct {
	dev  tun.Device
	mtu  atomic.Uint32
	out  chan *stack.PacketBuffer
	done chan struct{} // closed by Close

	closeOnce sync.Once
	mu        sync.RWMutex
	attached  stack.NetworkDispatcher // guarded by mu; nil before Attach
}

var (
	_ stack.LinkEndpoint = (*gvisorLink)(nil)
	_ stack.GSOEndpoint  = (*gvisorLink)(nil)
)

func newGvisorLink(dev tun.Device, mtu int) *gvisorLink {
	l := &gvisorLink{dev: dev, out: make(chan *stack.PacketBuffer, linkQueue), done: make(chan struct{})}
	l.mtu.Store(uint32(mtu))
	return l
}

// readLoop gives the device's packets to the stack until the device is closed
// or fails. Each packet is shown to before first.
func (l *gvisorLink) readLoop(before func([]byte)) error {
	batch := l.dev.BatchSize()
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, tunOffset+int(l.MTU()))
	}
	// gVisor's gro package is not used: with segments of a real kernel, 32 MiB
	// stalled after some 100 KiB (November 2026); without it they took 0.8 s.
	stack := l.dispatcher()
	for {
		n, err := l.dev.Read(bufs, sizes, tunOffset)
		for i := range n {
			p := bufs[i][tunOffset : tunOffset+sizes[i]]
			before(p)
			if pkt := inboundPacket(p); pkt != nil {
				stack.DeliverNetworkPacket(pkt.NetworkProtocolNumber, pkt)
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
	var proto tcpip.NetworkProtocolNumber
	switch {
	case len(p) >= header.IPv4MinimumSize && p[0]>>4 == 4:
		proto = header.IPv4ProtocolNumber
	case len(p) >= header.IPv6MinimumSize && p[0]>>4 == 6:
		proto = header.IPv6ProtocolNumber
	default:
		return nil
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(p)})
	pkt.NetworkProtocolNumber = proto
	return pkt
}

// writeLoop gives the stack's packets to the device until the link is closed.
// A packet that the device does not take is lost, as on any link.
func (l *gvisorLink) writeLoop() {
	room := make([][]byte, min(writeBatch, l.dev.BatchSize()))
	for i := range room {
		room[i] = make([]byte, writeBufferBytes)
	}
	bufs := make([][]byte, len(room))
	for {
		n := 0
		select {
		case <-l.done:
			return
		case pkt := <-l.out:
			bufs[0], n = fill(room[0], pkt), 1
		}
	more:
		for n < len(room) {
			select {
			case pkt := <-l.out:
				bufs[n] = fill(room[n], pkt)
				n++
			default:
				break more
			}
		}
		if _, err := l.dev.Write(bufs[:n], tunOffset); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// fill copies pkt into buf behind tunOffset and releases it.
func fill(buf []byte, pkt *stack.PacketBuffer) []byte {
	n := tunOffset
	for _, part := range pkt.AsSlices() {
		n += copy(buf[n:], part)
	}
	pkt.DecRef()
	return buf[:n]
}

// WritePackets implements stack.LinkWriter.
func (l *gvisorLink) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range pkts.AsSlice() {
		select {
		case <-l.done:
			return n, &tcpip.ErrClosedForSend{}
		case l.out <- pkt.IncRef():
			n++
		}
	}
	return n, nil
}

func (l *gvisorLink) dispatcher() stack.NetworkDispatcher {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.attached
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *gvisorLink) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attached = d
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *gvisorLink) IsAttached() bool { return l.dispatcher() != nil }

// Close implements stack.NetworkLinkEndpoint; it ends writeLoop.
func (l *gvisorLink) Close() { l.closeOnce.Do(func() { close(l.done) }) }

// MTU implements stack.NetworkLinkEndpoint.
func (l *gvisorLink) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements stack.NetworkLinkEndpoint.
func (l *gvisorLink) SetMTU(mtu uint32) { l.mtu.Store(mtu) }

// SupportedGSO implements stack.GSOEndpoint: gVisor builds large segments once
// and cuts them just above the link.
func (*gvisorLink) SupportedGSO() stack.SupportedGSO { return stack.GVisorGSOSupported }

// GSOMaxSize implements stack.GSOEndpoint.
func (*gvisorLink) GSOMaxSize() uint32 { return stack.GVisorGSOMaxSize }

// The rest of stack.NetworkLinkEndpoint: a link without link layer.
func (*gvisorLink) MaxHeaderLength() uint16                      { return 0 }
func (*gvisorLink) LinkAddress() tcpip.LinkAddress               { return "" }
func (*gvisorLink) SetLinkAddress(tcpip.LinkAddress)             {}
func (*gvisorLink) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }
func (*gvisorLink) Wait()                                        {}
func (*gvisorLink) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (*gvisorLink) AddHeader(*stack.PacketBuffer)                {}
func (*gvisorLink) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (*gvisorLink) SetOnCloseAction(func())                      {}
