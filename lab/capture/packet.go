package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Ethernet types and IP protocols that the parser knows.
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherVLAN = 0x8100
	EtherIPv6 = 0x86dd

	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Key is what a frame is, from where, to where. It is comparable.
type Key struct {
	EtherType uint16
	Proto     uint8          // IP protocol; 0 if not IP or cut off
	Src, Dst  netip.AddrPort // the port is 0 where there is none
	ICMPType  uint8          // of ICMP and ICMPv6
	Fragment  bool           // not the first fragment: ports are unknown
}

// Packet is all frames of one Key.
type Packet struct {
	Key
	Frames, Bytes int64
	First, Last   time.Time
}

func (p Packet) String() string {
	what := fmt.Sprintf("ethertype %#04x", p.EtherType)
	switch {
	case p.EtherType == EtherARP:
		what = "ARP"
	case p.Proto == ProtoTCP:
		what = "TCP"
	case p.Proto == ProtoUDP:
		what = "UDP"
	case p.Proto == ProtoICMP || p.Proto == ProtoICMPv6:
		what = fmt.Sprintf("ICMP(%d) type %d", p.Proto, p.ICMPType)
	case p.Src.IsValid():
		what = fmt.Sprintf("IP protocol %d", p.Proto)
	}
	if p.Fragment {
		what += " fragment"
	}
	return fmt.Sprintf("%s %s > %s: %d frames, %d bytes", what, p.Src, p.Dst, p.Frames, p.Bytes)
}

// Upkeep reports frames that every host on an Ethernet sends, whatever it is
// up to: ARP, and in ICMPv6 router solicitation, neighbour discovery (RFC 4861)
// and multicast listener reports (RFC 2710, RFC 3810).
func (k Key) Upkeep() bool {
	if k.EtherType == EtherARP {
		return true
	}
	if k.EtherType != EtherIPv6 || k.Proto != ProtoICMPv6 || k.Fragment {
		return false
	}
	switch k.ICMPType {
	case 133, 135, 136, 131, 132, 143:
		return true
	}
	return false
}

// Parse reads an Ethernet frame (its start is enough). It never fails: what
// cannot be told stays zero, and a zero Key is a leak like any other.
func Parse(b []byte) Key {
	if len(b) < 14 {
		return Key{}
	}
	k := Key{EtherType: binary.BigEndian.Uint16(b[12:])}
	b = b[14:]
	for range 2 { // one or two VLAN tags
		if k.EtherType != EtherVLAN || len(b) < 4 {
			break
		}
		k.EtherType = binary.BigEndian.Uint16(b[2:])
		b = b[4:]
	}
	switch k.EtherType {
	case EtherIPv4:
		k.ipv4(b)
	case EtherIPv6:
		k.ipv6(b)
	}
	return k
}

func (k *Key) ipv4(b []byte) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return
	}
	k.Proto = b[9]
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	k.Fragment = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	var payload []byte
	if size := int(b[0]&15) * 4; size >= 20 && size <= len(b) {
		payload = b[size:]
	}
	k.transport(src, dst, payload)
}

func (k *Key) ipv6(b []byte) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return
	}
	k.Proto = b[6]
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	b = b[40:]
	const extensions = 8 // more are not followed: the frame is what its last header says
	for range extensions {
		size := 8
		switch k.Proto {
		case 0, 43, 60, 135, 139, 140: // options, routing, mobility, HIP, shim6
			if len(b) >= 2 {
				size = 8 + int(b[1])*8
			}
		case 51: // authentication header, RFC 4302 section 2.2
			if len(b) >= 2 {
				size = 8 + int(b[1])*4
			}
		case 44:
			if len(b) >= 8 {
				k.Fragment = binary.BigEndian.Uint16(b[2:])&^7 != 0
			}
		default:
			k.transport(src, dst, b)
			return
		}
		if len(b) < size {
			break
		}
		k.Proto, b = b[0], b[size:]
		if k.Fragment {
			break
		}
	}
	k.transport(src, dst, nil)
}

func (k *Key) transport(src, dst netip.Addr, b []byte) {
	var from, to uint16
	switch {
	case k.Fragment:
	case (k.Proto == ProtoTCP || k.Proto == ProtoUDP) && len(b) >= 4:
		from, to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case (k.Proto == ProtoICMP || k.Proto == ProtoICMPv6) && len(b) >= 1:
		k.ICMPType = b[0]
	}
	k.Src, k.Dst = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
}

// Tuple is traffic that is allowed. Proto is "tcp", "udp" or "icmp"; an invalid
// Src, or port 0, matches any.
type Tuple struct {
	Proto    string
	Dst, Src netip.AddrPort
}

func (t Tuple) match(k Key) bool {
	proto := map[string][]uint8{"tcp": {ProtoTCP}, "udp": {ProtoUDP}, "icmp": {ProtoICMP, ProtoICMPv6}}[t.Proto]
	return (!k.Fragment || t.Dst.Port() == 0) && slices.Contains(proto, k.Proto) && matchAddr(t.Dst, k.Dst) && matchAddr(t.Src, k.Src)
}

func matchAddr(want, got netip.AddrPort) bool {
	return (!want.Addr().IsValid() || want.Addr() == got.Addr()) && (want.Port() == 0 || want.Port() == got.Port())
}

// frameBytes is a frame's length by its IP header, since only its start is
// here.
func frameBytes(b []byte) int64 {
	if len(b) >= 14+6 {
		switch binary.BigEndian.Uint16(b[12:]) {
		case EtherIPv4:
			return 14 + int64(binary.BigEndian.Uint16(b[16:]))
		case EtherIPv6:
			return 14 + 40 + int64(binary.BigEndian.Uint16(b[18:]))
		}
	}
	return int64(len(b))
}
