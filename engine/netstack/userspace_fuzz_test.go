package netstack

import (
	"bytes"
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// FuzzSYN holds the parsers that see packets before gVisor does.
func FuzzSYN(f *testing.F) {
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
	if _, id, _, ok := parseSYN(syn6); !ok || id.LocalPort != 2 || id.RemotePort != 1 {
		f.Errorf("a SYN is not seen: %v %v", id, ok)
	}
	mss := append(bytes.Clone(syn), 1, 3, 3, 7, 1, 2, 4, 0xff, 0xff, 0)
	mss[header.IPv4MinimumSize+header.TCPDataOffset] = (header.TCPMinimumSize + 12) / 4 << 4
	mss = append(mss, 0, 0)
	f.Add(mss)
	if _, _, h, _ := parseSYN(mss); h == nil {
		f.Error("a SYN with options is not seen")
	} else if clampMSS(h); binary.BigEndian.Uint16(h[header.TCPMinimumSize+7:]) != maxSegment {
		f.Errorf("MSS is not clamped: %x", h)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		proto, _, h, ok := parseSYN(p)
		if ok && proto != header.IPv4ProtocolNumber && proto != header.IPv6ProtocolNumber {
			t.Errorf("%x: protocol %d", p, proto)
		}
		if ok {
			clampMSS(h)
		}
		if pkt := inboundPacket(p); pkt != nil {
			pkt.DecRef()
		}
	})
}

// FuzzInbox holds what reads raw queues: whatever comes, it is a packet whole and
// in order, or nothing.
func FuzzInbox(f *testing.F) {
	f.Add([]byte{needsCsum}, []byte{0x45}, uint16(20))
	f.Add([]byte{dataValid}, []byte{0x45, 0, 0xff, 0xff}, uint16(65535))
	f.Add([]byte{0}, []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17}, uint16(28))
	f.Add([]byte{0}, []byte{0x60, 0, 0, 0, 0, 8, 6}, uint16(3000))
	f.Fuzz(func(t *testing.T, vnet, head []byte, n uint16) {
		whole := make([]byte, vnetBytes+int(n))
		for i := range whole {
			whole[i] = byte(i)
		}
		copy(whole, vnet[:min(len(vnet), vnetBytes)])
		copy(whole[vnetBytes:], head)
		var in inbox
		left := whole
		for _, part := range in.parts() {
			left = left[copy(part, left):]
		}
		if len(left) != 0 {
			t.Fatalf("no room for %d of %d bytes", len(left), len(whole))
		}
		if pkt := in.take(len(whole)); pkt != nil {
			got := pkt.Data().AsRange().ToSlice()
			if want := whole[vnetBytes:]; len(got) > len(want) || !bytes.Equal(got, want[:len(got)]) {
				t.Errorf("%d bytes became %d others", len(want), len(got))
			}
			pkt.DecRef()
		}
		in.parts()
		in.release()
	})
}
