package netstack

import (
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// FuzzSYNTuple holds the parser that sees packets before gVisor does.
func FuzzSYNTuple(f *testing.F) {
	syn := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	header.IPv4(syn).Encode(&header.IPv4Fields{TotalLength: uint16(len(syn)), Protocol: uint8(tcp.ProtocolNumber)})
	header.TCP(syn[header.IPv4MinimumSize:]).Encode(&header.TCPFields{SrcPort: 1, DstPort: 2, DataOffset: 20, Flags: header.TCPFlagSyn})
	f.Add(syn)
	f.Add(syn[:30])
	f.Add([]byte{0x4f, 0})
	syn6 := make([]byte, header.IPv6MinimumSize+header.TCPMinimumSize)
	header.IPv6(syn6).Encode(&header.IPv6Fields{PayloadLength: 20, TransportProtocol: tcp.ProtocolNumber})
	copy(syn6[header.IPv6MinimumSize:], syn[header.IPv4MinimumSize:])
	f.Add(syn6)
	if _, id, ok := synTuple(syn6); !ok || id.LocalPort != 2 || id.RemotePort != 1 {
		f.Errorf("a SYN is not seen: %v %v", id, ok)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		proto, _, ok := synTuple(p)
		if ok && proto != header.IPv4ProtocolNumber && proto != header.IPv6ProtocolNumber {
			t.Errorf("%x: protocol %d", p, proto)
		}
		if pkt := inboundPacket(p); pkt != nil {
			pkt.DecRef()
		}
	})
}
