package netstack

import (
	"net/netip"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// echo4 answers an echo request for any address (RFC 792), as if it were near:
// proxies carry no ICMP, and a host that does not answer looks dead. It reports
// whether pkt was one.
func echo4(s *stack.Stack, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo {
		return false
	}
	app, dst := endsOf(pkt)
	if !unicast(app) || !unicast(dst) || app == dst {
		return true
	}
	reply := append(append([]byte(nil), h...), pkt.Data().AsRange().ToSlice()...)
	header.ICMPv4(reply).SetType(header.ICMPv4EchoReply)
	sendICMP(s, dst, app, reply)
	return true
}

// echo6 is echo4 for ICMPv6 (RFC 4443 section 4).
func echo6(s *stack.Stack, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv6(pkt.TransportHeader().Slice())
	if len(h) < header.ICMPv6MinimumSize || h.Type() != header.ICMPv6EchoRequest {
		return false
	}
	app, dst := endsOf(pkt)
	if !unicast(app) || !unicast(dst) || app == dst {
		return true
	}
	reply := append(append([]byte(nil), h...), pkt.Data().AsRange().ToSlice()...)
	header.ICMPv6(reply).SetType(header.ICMPv6EchoReply)
	sendICMP(s, dst, app, reply)
	return true
}

// portUnreachable tells app that nobody answers at dst, as dst would: a
// datagram from app to dst is quoted, header only. At most as many are sent per
// second as the stack's own limit allows.
func portUnreachable(s *stack.Stack, app, dst netip.AddrPort) {
	if app.Addr().Is4() != dst.Addr().Is4() || !s.AllowICMPMessage() {
		return
	}
	quoted := make([]byte, header.UDPMinimumSize)
	header.UDP(quoted).Encode(&header.UDPFields{SrcPort: app.Port(), DstPort: dst.Port(), Length: header.UDPMinimumSize})
	src, to := tcpip.AddrFromSlice(app.Addr().AsSlice()), tcpip.AddrFromSlice(dst.Addr().AsSlice())
	if app.Addr().Is4() {
		ip := make(header.IPv4, header.IPv4MinimumSize)
		ip.Encode(&header.IPv4Fields{
			TotalLength: header.IPv4MinimumSize + header.UDPMinimumSize,
			TTL:         64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: to,
		})
		ip.SetChecksum(^ip.CalculateChecksum())
		h := make(header.ICMPv4, header.ICMPv4MinimumSize)
		h.SetType(header.ICMPv4DstUnreachable)
		h.SetCode(header.ICMPv4PortUnreachable)
		sendICMP(s, dst.Addr(), app.Addr(), append(append(h, ip...), quoted...))
		return
	}
	ip := make(header.IPv6, header.IPv6MinimumSize)
	ip.Encode(&header.IPv6Fields{
		PayloadLength: header.UDPMinimumSize, TransportProtocol: header.UDPProtocolNumber,
		HopLimit: 64, SrcAddr: src, DstAddr: to,
	})
	h := make(header.ICMPv6, header.ICMPv6DstUnreachableMinimumSize)
	h.SetType(header.ICMPv6DstUnreachable)
	h.SetCode(header.ICMPv6PortUnreachable)
	sendICMP(s, dst.Addr(), app.Addr(), append(append(h, ip...), quoted...))
}

// sendICMP sends message (of src's family) after filling in its checksum. What
// cannot be sent is lost, as ICMP may be.
func sendICMP(s *stack.Stack, src, dst netip.Addr, message []byte) {
	r, err := routeFrom(s, src, dst)
	if err != nil {
		return
	}
	defer r.Release()
	proto := header.ICMPv4ProtocolNumber
	if src.Is4() {
		h := header.ICMPv4(message)
		h.SetChecksum(0)
		h.SetChecksum(^checksum.Checksum(h, 0))
	} else {
		proto = header.ICMPv6ProtocolNumber
		h := header.ICMPv6(message)
		h.SetChecksum(0)
		h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: r.LocalAddress(), Dst: r.RemoteAddress()}))
	}
	sendIP(r, proto, message)
}

// transportHeaderBytes is the length of UDP's header, and of the fixed part of
// both ICMPs'.
const transportHeaderBytes = 8

// sendIP sends the UDP or ICMP packet message; IP fragments it where it must.
func sendIP(r *stack.Route, proto tcpip.TransportProtocolNumber, message []byte) tcpip.Error {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(r.MaxHeaderLength()) + transportHeaderBytes,
		Payload:            buffer.MakeWithData(message[transportHeaderBytes:]),
	})
	defer pkt.DecRef()
	copy(pkt.TransportHeader().Push(transportHeaderBytes), message)
	pkt.TransportProtocolNumber = proto
	return r.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: 64}, pkt)
}

// routeFrom is the way from src, any address, to an app at dst. The caller
// releases it.
func routeFrom(s *stack.Stack, src, dst netip.Addr) (*stack.Route, tcpip.Error) {
	proto := header.IPv4ProtocolNumber
	if dst.Is6() {
		proto = header.IPv6ProtocolNumber
	}
	return s.FindRoute(gvisorNIC, tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), proto, false)
}

// endsOf is who sent pkt and to whom.
func endsOf(pkt *stack.PacketBuffer) (src, dst netip.Addr) {
	ip := pkt.Network()
	return addrPort(ip.SourceAddress(), 0).Addr(), addrPort(ip.DestinationAddress(), 0).Addr()
}
