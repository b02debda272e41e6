package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/bits"
	"net/netip"
)

const (
	vnetBytes   = 10       // struct virtio_net_hdr (virtio 1.2, section 5.1.6) as the TUN has it
	packetBytes = 64 << 10 // the longest packet a queue returns
	bufferBytes = vnetBytes + packetBytes

	needsCsum  = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum field holds the pseudo header's sum
	dataValid  = 2 // VIRTIO_NET_HDR_F_DATA_VALID: the checksum has been verified
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58

	ipv4Bytes, ipv6Bytes = 20, 40
	tcpBytes, udpBytes   = 20, 8
	fragmentHeaderBytes  = 8
	maxExtensionHeaders  = 8 // a chain longer than this is not honest
	tcpFIN, tcpSYN       = 1, 2
	tcpRST, tcpACK       = 4, 16
	sendTTL              = 64
)

// addr is an IPv4 address mapped into IPv6 (RFC 4291 section 2.5.5.2) or an
// IPv6 address: fixed size, so that it makes a map key without pointers.
type addr [16]byte

func addrFrom4(b []byte) (a addr) {
	a[10], a[11] = 0xff, 0xff
	copy(a[12:], b[:4])
	return a
}

func addrOf(ip netip.Addr) addr { return ip.As16() }

func (a addr) netip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// bytes is the address as it stands in a packet.
func (a *addr) bytes(v6 bool) []byte {
	if v6 {
		return a[:]
	}
	return a[12:]
}

// packet is one parsed packet. It points into the buffer it was read into.
type packet struct {
	raw      []byte // virtio_net_hdr and IP packet
	ip       []byte // the IP packet, cut to the length its header gives
	v6       bool
	proto    uint8 // of the transport header
	ttl      uint8
	src, dst addr
	l4       int // offset in ip of the transport header, or of a fragment's data

	fragment bool // not a whole packet: l4 points at a piece of proto's bytes
	more     bool // more fragments follow
	fragOff  int  // bytes
	fragID   uint32
	fragHdr  int // IPv6: offset in ip of the fragment header
	nextAt   int // IPv6: offset in ip of the "next header" byte that leads to l4 or fragHdr
}

// parse reads the IP header (RFC 791, RFC 8200) of raw. It reports false for
// anything that is malformed or that nobody honest sends.
func parse(raw []byte) (p packet, ok bool) {
	if len(raw) < vnetBytes+ipv4Bytes {
		return p, false
	}
	p.raw, p.ip = raw, raw[vnetBytes:]
	switch p.ip[0] >> 4 {
	case 4:
		return p, p.parse4()
	case 6:
		return p, p.parse6()
	}
	return p, false
}

func (p *packet) parse4() bool {
	b := p.ip
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < ipv4Bytes || total < head || total > len(b) {
		return false
	}
	p.cut(total)
	p.src, p.dst = addrFrom4(b[12:]), addrFrom4(b[16:])
	p.ttl, p.proto, p.l4 = b[8], b[9], head
	if f := binary.BigEndian.Uint16(b[6:]); f&0x3fff != 0 {
		p.fragment, p.more = true, f&0x2000 != 0
		p.fragOff = int(f&0x1fff) * 8
		p.fragID = uint32(binary.BigEndian.Uint16(b[4:]))
	}
	return true
}

func (p *packet) parse6() bool {
	b := p.ip
	if len(b) < ipv6Bytes {
		return false
	}
	total := ipv6Bytes + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return false
	}
	b = b[:total]
	p.cut(total)
	p.v6, p.ttl = true, b[7]
	p.src, p.dst = addr(b[8:24]), addr(b[24:40])
	p.proto, p.l4, p.nextAt = b[6], ipv6Bytes, 6
	return p.walk()
}

// walk steps over IPv6 extension headers (RFC 8200 section 4) to the transport
// header, or to the data of a fragment.
func (p *packet) walk() bool {
	b := p.ip
	for range maxExtensionHeaders {
		var n int
		switch p.proto {
		case 0, 60: // hop-by-hop options, destination options
			if len(b) < p.l4+8 {
				return false
			}
			n = 8 + int(b[p.l4+1])*8
		case 43: // routing: only one that has been used up
			if len(b) < p.l4+8 || b[p.l4+3] != 0 {
				return false
			}
			n = 8 + int(b[p.l4+1])*8
		case 44:
			if len(b) < p.l4+fragmentHeaderBytes {
				return false
			}
			f := binary.BigEndian.Uint16(b[p.l4+2:])
			p.fragment, p.more, p.fragOff = f&^6 != 0, f&1 != 0, int(f&^7)
			p.fragID = binary.BigEndian.Uint32(b[p.l4+4:])
			p.fragHdr = p.l4
			if p.fragment {
				p.proto, p.l4 = b[p.l4], p.l4+fragmentHeaderBytes
				return true
			}
			n = fragmentHeaderBytes // an atomic fragment, RFC 6946
		default:
			return true
		}
		if p.l4+n > len(b) {
			return false
		}
		p.proto, p.nextAt, p.l4 = b[p.l4], p.l4, p.l4+n
	}
	return false
}

// cut drops padding behind the packet.
func (p *packet) cut(total int) {
	p.ip, p.raw = p.ip[:total], p.raw[:vnetBytes+total]
}

// transport is the transport header and what follows it.
func (p *packet) transport() []byte { return p.ip[p.l4:] }

// partial reports whether the kernel has left the checksum to the device.
func (p *packet) partial() bool { return p.raw[0]&needsCsum != 0 }

// trusted reports whether the transport checksum need not or cannot be verified.
func (p *packet) trusted() bool { return p.raw[0]&(needsCsum|dataValid) != 0 }

// checksumOK verifies the transport checksum of a whole packet.
func (p *packet) checksumOK() bool {
	t := p.transport()
	s := pseudoSum(p.src.bytes(p.v6), p.dst.bytes(p.v6), p.proto, len(t))
	return sum(t, s) == 0xffff
}

// tuple is one direction of a conversation; the key of both flow tables (UDP
// sessions leave dst and dport zero).
type tuple struct {
	src, dst     addr
	sport, dport uint16
}

func (t tuple) srcAddrPort() netip.AddrPort { return netip.AddrPortFrom(t.src.netip(), t.sport) }
func (t tuple) dstAddrPort() netip.AddrPort { return netip.AddrPortFrom(t.dst.netip(), t.dport) }

// hash spreads tuples; with a random seed nobody can choose colliding ports.
func (t *tuple) hash(seed maphash.Seed) uint64 {
	var b [36]byte
	copy(b[:], t.src[:])
	copy(b[16:], t.dst[:])
	binary.NativeEndian.PutUint16(b[32:], t.sport)
	binary.NativeEndian.PutUint16(b[34:], t.dport)
	return maphash.Bytes(seed, b[:])
}

// tuple reads the ports, which are in the same place for TCP and UDP. The
// transport header must be there in full.
func (p *packet) tuple() tuple {
	t := p.transport()
	return tuple{src: p.src, dst: p.dst,
		sport: binary.BigEndian.Uint16(t), dport: binary.BigEndian.Uint16(t[2:])}
}

// putIP writes an IP header for n bytes of transport from src to dst at the
// start of b and returns its length. IPv4 packets get DF and no ID (RFC 6864).
func putIP(b []byte, v6 bool, src, dst addr, proto uint8, n int) int {
	if v6 {
		clear(b[:8])
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], uint16(n))
		b[6], b[7] = proto, sendTTL
		copy(b[8:], src[:])
		copy(b[24:], dst[:])
		return ipv6Bytes
	}
	clear(b[:ipv4Bytes])
	b[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(b[2:], uint16(ipv4Bytes+n))
	b[6] = 0x40
	b[8], b[9] = sendTTL, proto
	copy(b[12:], src[12:])
	copy(b[16:], dst[12:])
	binary.BigEndian.PutUint16(b[10:], ^sum(b[:ipv4Bytes], 0))
	return ipv4Bytes
}

func ipHeaderBytes(v6 bool) int {
	if v6 {
		return ipv6Bytes
	}
	return ipv4Bytes
}

// maxTransport is how many bytes may follow an IP header without extensions: the
// length field of IPv6 does not count the header (RFC 8200 section 3).
func maxTransport(v6 bool) int {
	if v6 {
		return math.MaxUint16
	}
	return math.MaxUint16 - ipv4Bytes
}

// The Internet checksum (RFC 1071) is the complement of a ones' complement sum
// of 16-bit words. Here "sum" means the sum before that complement.

// sum adds b, as big-endian words padded with a zero byte, to the sum s.
func sum(b []byte, s uint16) uint16 {
	total, carry := uint64(s), uint64(0)
	for len(b) >= 8 {
		total, carry = bits.Add64(total, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	var tail [8]byte
	copy(tail[:], b)
	total, carry = bits.Add64(total, binary.BigEndian.Uint64(tail[:]), carry)
	total, carry = bits.Add64(total, 0, carry)
	return fold(total + carry)
}

// fold brings a sum of 16-bit words down to 16 bits, carries added back in.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s>>16 + s&0xffff)
}

// add is the ones' complement sum of a and b.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s>>16 + s&0xffff)
}

// pseudoSum is the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200
// section 8.1) for n bytes of protocol proto between src and dst, which are
// both 4 or both 16 bytes.
func pseudoSum(src, dst []byte, proto uint8, n int) uint16 {
	s := sum(dst, sum(src, 0))
	return add(add(s, uint16(proto)), fold(uint64(n)))
}

// delta is what changing a field from old to new adds to a sum: RFC 1624
// section 3, HC' = ~(~HC + ~m + m').
func delta(old, new []byte, s uint16) uint16 {
	return add(sum(new, s), ^sum(old, 0))
}
