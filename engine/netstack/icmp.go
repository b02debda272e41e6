package netstack

import (
	"encoding/binary"
	"net/netip"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// unreachability is an ICMP destination unreachable code: RFC 792 (type 3) and
// RFC 4443 section 3.1 (type 1).
type unreachability struct{ code4, code6 uint8 }

func noHost() unreachability { return unreachability{1, 3} }
func noPort() unreachability { return unreachability{3, 4} }

const icmpBytes = 8

// packetICMP answers echo requests for every address: latency to the target is
// not known here, but programs that test for a connection by ping find one.
// Everything else is dropped: apps tell us nothing by ICMP, and an ICMP error
// is never answered (RFC 1122 section 3.2.2).
func (k *kernel) packetICMP(q platform.Queue, p *packet) {
	t := p.transport()
	request, reply := byte(8), byte(0)
	if p.v6 {
		request, reply = 128, 129
	}
	if len(t) < icmpBytes || t[0] != request || t[1] != 0 {
		k.counters.ignored.Add(1)
		return
	}
	b := k.pool.get(bufferHead + len(t))
	defer k.pool.put(b)
	copy(b.all[bufferHead:], t)
	b.all[bufferHead] = reply
	k.send(q, b.data(), p.v6, p.dst, p.src, p.proto)
}

// unreachable tells the sender of p that its destination cannot be reached. The
// answer quotes no more than the IP header and 8 bytes (RFC 792), which is
// enough for the sender to find its socket, and shorter than any amplifier
// wants.
func (k *kernel) unreachable(q platform.Queue, p *packet, u unreachability) {
	quote := p.ip[:min(len(p.ip), p.l4+8)]
	b := k.pool.get(bufferHead + icmpBytes + len(quote))
	defer k.pool.put(b)
	t := b.all[bufferHead:]
	clear(t[:icmpBytes])
	proto := uint8(protoICMP)
	t[0], t[1] = 3, u.code4
	if p.v6 {
		proto, t[0], t[1] = protoICMP6, 1, u.code6
	}
	copy(t[icmpBytes:], quote)
	k.send(q, b.data(), p.v6, p.dst, p.src, proto)
}

// refuseUDP tells the app at src that nobody answers at dst. The quoted
// datagram is made up: its length is all that is not known any more.
func (k *kernel) refuseUDP(q platform.Queue, src, dst netip.AddrPort) {
	p := packet{v6: src.Addr().Is6(), src: addrOf(src.Addr()), dst: addrOf(dst.Addr())}
	var quote [ipv6Bytes + udpBytes]byte
	p.l4 = putIP(quote[:], p.v6, p.src, p.dst, protoUDP, udpBytes)
	p.ip = quote[:p.l4+udpBytes]
	udp := p.transport()
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], udpBytes)
	k.unreachable(q, &p, noPort())
}
