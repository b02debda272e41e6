package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// piece makes a fragment of the transport bytes whole: those from from to to.
func piece(v6 bool, id uint32, whole []byte, from, to int) *packet {
	more := uint16(1)
	if to == len(whole) {
		more = 0
	}
	var raw []byte
	if v6 {
		h := make([]byte, fragmentHeaderBytes)
		h[0] = protoUDP
		binary.BigEndian.PutUint16(h[2:], uint16(from)|more)
		binary.BigEndian.PutUint32(h[4:], id)
		raw = craft(appAddr6, "2001:db8::7", 44, append(h, whole[from:to]...))
	} else {
		raw = craft(appAddr4, "203.0.113.7", 200, whole[from:to])
		ip := raw[vnetBytes:]
		ip[9] = protoUDP
		binary.BigEndian.PutUint16(ip[4:], uint16(id))
		binary.BigEndian.PutUint16(ip[6:], more<<13|uint16(from/8))
	}
	p, ok := parse(raw)
	if !ok || !p.fragment {
		panic("not a fragment")
	}
	return &p
}

func TestReassembly(t *testing.T) {
	whole := make([]byte, 4000)
	rand.NewChaCha8([32]byte{1}).Read(whole)
	for name, c := range map[string]struct {
		pieces []span
		done   int // the piece that completes the packet; -1 if none does
	}{
		"in order":                 {[]span{{0, 1480}, {1480, 2960}, {2960, 4000}}, 2},
		"backwards":                {[]span{{2960, 4000}, {1480, 2960}, {0, 1480}}, 2},
		"middle last":              {[]span{{0, 1480}, {2960, 4000}, {1480, 2960}}, 2},
		"repeated":                 {[]span{{0, 1480}, {0, 1480}, {1480, 4000}}, 2},
		"overlap":                  {[]span{{0, 1480}, {1472, 2960}, {1480, 4000}}, -1},
		"overlap at the end":       {[]span{{1480, 4000}, {0, 1488}, {0, 1480}}, -1},
		"inside another":           {[]span{{0, 1480}, {8, 16}, {1480, 4000}}, -1},
		"hole":                     {[]span{{0, 1480}, {1488, 4000}}, -1},
		"beyond the end":           {[]span{{0, 1480}, {1480, 4000}}, 1},
		"not a multiple of eight":  {[]span{{0, 1479}, {1479, 4000}}, -1},
		"more behind the last one": {[]span{{1600, 1680}, {1480, 4000}, {0, 1480}}, -1},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprint(name, v6), func(t *testing.T) {
				r := &reassembler{pool: new(pools)}
				for i, s := range c.pieces {
					if s.from%8 != 0 {
						return // cannot be said in a header
					}
					b := r.add(piece(v6, 7, whole, s.from, s.to), 0)
					if (b != nil) != (i == c.done) {
						t.Fatalf("piece %d: complete %v", i, b != nil)
					}
					if b == nil {
						continue
					}
					p, ok := parse(b.data())
					if !ok || p.fragment || p.proto != protoUDP || !bytes.Equal(p.transport(), whole) {
						t.Errorf("another packet came out: %v %+v", ok, p)
					}
				}
			})
		}
	}
}

// TestReassemblyBounds checks that memory is bounded in number and time.
func TestReassemblyBounds(t *testing.T) {
	r := &reassembler{pool: new(pools)}
	whole := make([]byte, 3000)
	for id := range uint32(10 * maxReassemblies) {
		r.add(piece(false, id, whole, 0, 1480), time.Duration(id))
	}
	if len(r.m) != maxReassemblies {
		t.Errorf("%d packets are held, want %d", len(r.m), maxReassemblies)
	}
	if r.add(piece(false, 10*maxReassemblies-1, whole, 1480, 3000), 0) == nil {
		t.Error("the newest packet was lost")
	}
	if r.add(piece(false, 0, whole, 1480, 3000), 0) != nil {
		t.Error("the oldest packet is still there")
	}
	r.expire(flow.ReassembleWithin + time.Minute)
	if len(r.m) != 0 {
		t.Errorf("%d packets are held after the time is over", len(r.m))
	}
	big := make([]byte, 60000)
	for i := range maxFragments + 1 {
		if i == 0 {
			r.add(piece(false, 1, big, 8*maxFragments+80, 60000), 0)
			continue
		}
		r.add(piece(false, 1, big, 8*(i-1), 8*i), 0)
	}
	for _, part := range r.m {
		if part.buf != nil {
			t.Error("a packet of more fragments than allowed is kept")
		}
	}
}

// TestFragmentsRoundTrip sends a large datagram and puts its fragments together.
func TestFragmentsRoundTrip(t *testing.T) {
	k, q := newMemoryKernel(t, funcHandler{})
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{1473, 1500, 9000, 65000, maxTransport(v6) - udpBytes} {
			out := make([]byte, bufferHead+udpBytes+n)
			copy(out[bufferHead:], udpDatagram(1, 2, ""))
			binary.BigEndian.PutUint16(out[bufferHead+4:], uint16(udpBytes+n))
			src, dst := addr{0x20, 15: 1}, addr{0x20, 15: 2}
			if !v6 {
				src, dst = addrFrom4([]byte{203, 0, 113, 7}), addrFrom4([]byte{198, 18, 0, 1})
			}
			k.send(q, out, v6, src, dst, protoUDP)
			var whole *packetBuffer
			for _, raw := range q.take() {
				if len(raw) > vnetBytes+k.mtu || !correct(t, raw) {
					t.Fatalf("a fragment of %d bytes, or a wrong checksum", len(raw))
				}
				p, _ := parse(raw)
				if whole = k.frags.add(&p, 0); whole == nil && !p.more {
					t.Fatal("not complete after the last fragment")
				}
			}
			if whole == nil || !correct(t, whole.data()) {
				t.Fatalf("v6 %v, %d bytes: not complete, or a wrong checksum", v6, n)
			}
		}
	}
}
