package netstack

import (
	"encoding/binary"
	"math/bits"
)

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
