package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
			if n%3 == 0 {
				b[i] = 0xff // carries everywhere
			}
		}
		start := uint16(r.Uint32())
		want := naiveSum([]byte{byte(start >> 8), byte(start)}, b)
		if got := sum(b, start); got%0xffff != want%0xffff {
			t.Fatalf("%d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// TestRewrite compares the incremental checksum with one computed from nothing,
// for complete and partial checksums.
func TestRewrite(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 4000 {
		v6, partial := i%2 == 1, i%4 >= 2
		src, dst := randomAddr(r, v6), randomAddr(r, v6)
		data := make([]byte, r.IntN(100))
		raw := craft(src.String(), dst.String(), protoTCP,
			tcpSegment(uint16(r.Uint32()), uint16(r.Uint32()), r.Uint32(), r.Uint32(), tcpACK, string(data)))
		p, ok := parse(raw)
		if !ok {
			t.Fatal("malformed")
		}
		if partial {
			raw[0] = needsCsum
			s := naiveSum(pseudo(p.ip, protoTCP, len(p.transport())))
			binary.BigEndian.PutUint16(p.transport()[16:], s)
		}
		from := p.tuple()
		to := tuple{src: addrOf(randomAddr(r, v6)), dst: addrOf(randomAddr(r, v6)), sport: uint16(r.Uint32()), dport: uint16(r.Uint32())}
		there, back := newRewrite(from, to), newRewrite(to, from)
		before := bytes.Clone(raw)
		there.apply(&p)
		if p, _ = parse(raw); p.tuple() != to || !correct(t, raw) {
			t.Fatalf("%x became %x", before, raw)
		}
		back.apply(&p)
		if p, _ = parse(raw); p.tuple() != from || !correct(t, raw) {
			t.Fatalf("%x came back as %x", before, raw)
		}
	}
}

func randomAddr(r *rand.Rand, v6 bool) netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = byte(r.Uint32())
		if r.IntN(8) == 0 {
			b[i] = 0xff * byte(r.IntN(2))
		}
	}
	if v6 {
		b[0] = 0x20
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(b[:4]))
}

// FuzzPacket gives packets to a kernel path that has one open flow per family.
// It must not panic, answer with more than it got, or break a checksum; and its
// parser must agree with gVisor's.
func FuzzPacket(f *testing.F) {
	for _, a := range [][2]string{{appAddr4, "203.0.113.7"}, {appAddr6, "2001:db8::7"}, {"198.18.0.1", "198.18.0.17"}, {appAddr6, "fd61:746c:616e:7469::101"}} {
		for _, flags := range []byte{tcpSYN, tcpACK, tcpRST, tcpFIN | tcpACK} {
			f.Add(craft(a[0], a[1], protoTCP, tcpSegment(9, 80, 1, 1, flags, "data")))
			f.Add(craft(a[0], a[1], protoTCP, tcpSegment(40000, firstPeerPort, 1, 1, flags, "data")))
		}
		f.Add(craft(a[0], a[1], protoUDP, udpDatagram(9, 53, "query")))
		f.Add(craft(a[0], a[1], protoICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1}))
		f.Add(craft(a[0], a[1], protoICMP6, []byte{128, 0, 0, 0, 0, 1, 0, 1}))
		f.Add(craft(a[0], a[1], 44, append([]byte{17, 0, 0, 0, 0, 0, 0, 9}, udpDatagram(9, 53, "q")...)))
		f.Add(craft(a[0], a[1], 44, append([]byte{17, 0, 0, 1, 0, 0, 0, 9}, udpDatagram(9, 53, "12345678")...)))
		f.Add(craft(a[0], a[1], 0, append([]byte{6, 0, 1, 4, 0, 0, 0, 0}, tcpSegment(9, 80, 1, 1, tcpSYN, "")...)))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, q := newMemoryKernel(t, funcHandler{})
		openFlow(k, k.v4, appAddr4, "203.0.113.7")
		openFlow(k, k.v6, appAddr6, "2001:db8::7")
		k.ending = true // new flows are refused on the spot
		agree(t, raw)
		p, parsed := parse(bytes.Clone(raw))
		valid := parsed && !p.fragment && len(p.transport()) >= tcpBytes && correct(t, bytes.Clone(raw))
		k.give(q, raw)
		out, bytesOut := q.take(), 0
		for _, o := range out {
			bytesOut += len(o)
			if o, ok := parse(o); ok && !o.fragment && (valid || o.proto != protoTCP) && !correct(t, o.raw) {
				t.Errorf("%x was answered with a wrong checksum: %x", raw, o.raw)
			}
		}
		if len(out) > 1 || bytesOut > len(raw) {
			t.Errorf("%d bytes were answered with %d packets of %d bytes", len(raw), len(out), bytesOut)
		}
	})
}

// openFlow makes an open flow from port 9 of app to port 80 of dst.
func openFlow(k *kernel, f *family, app, dst string) {
	key := tuple{src: addrOf(netip.MustParseAddr(app)), dst: addrOf(netip.MustParseAddr(dst)), sport: 9, dport: 80}
	slot, peer, _ := f.take(nil)
	inner := tuple{src: peer, sport: firstPeerPort + slot, dst: f.tun, dport: f.port}
	fl := &tcpFlow{key: key, slot: slot, out: newRewrite(key, inner),
		back: newRewrite(tuple{src: inner.dst, dst: inner.src, sport: inner.dport, dport: inner.sport},
			tuple{src: key.dst, dst: key.src, sport: key.dport, dport: key.sport})}
	fl.phase.Store(open)
	k.tcp.getOrPut(key, func() *tcpFlow { return fl })
	f.slots[slot].Store(fl)
}

// agree compares what parse finds with what gVisor finds in the same packet.
func agree(t *testing.T, raw []byte) {
	t.Helper()
	p, ok := parse(bytes.Clone(raw))
	if !ok {
		return
	}
	if !p.v6 {
		h := header.IPv4(raw[vnetBytes:])
		if !h.IsValid(len(h)) || h.SourceAddress().As4() != p.src.netip().As4() || h.DestinationAddress().As4() != p.dst.netip().As4() ||
			h.Protocol() != p.proto || int(h.HeaderLength()) != p.l4 || int(h.TotalLength()) != len(p.ip) ||
			h.More() != p.more || int(h.FragmentOffset()) != p.fragOff {
			t.Errorf("gVisor reads %x in another way", raw)
		}
		return
	}
	h := header.IPv6(raw[vnetBytes:])
	if !h.IsValid(len(h)) || h.SourceAddress().As16() != p.src || h.DestinationAddress().As16() != p.dst ||
		int(h.PayloadLength())+ipv6Bytes != len(p.ip) || p.l4 > len(p.ip) {
		t.Errorf("gVisor reads %x in another way", raw)
	}
}

// TestExtensionHeaders checks the walk over chains that end, and that do not.
func TestExtensionHeaders(t *testing.T) {
	udp := udpDatagram(1, 2, "x")
	chain := func(n int, last ...byte) []byte {
		var b []byte
		for i := range n {
			next := byte(60)
			if i == n-1 {
				next = protoUDP
			}
			b = append(b, next, 0, 1, 4, 0, 0, 0, 0)
		}
		return append(append(b, last...), udp...)
	}
	for name, c := range map[string]struct {
		proto byte
		body  []byte
		ok    bool
	}{
		"none":                {protoUDP, udp, true},
		"three options":       {60, chain(3), true},
		"endless":             {60, chain(maxExtensionHeaders + 1), false},
		"longer than packet":  {60, []byte{17, 255, 1, 4, 0, 0, 0, 0}, false},
		"cut short":           {60, []byte{17, 0, 1}, false},
		"routing, used up":    {43, append([]byte{17, 0, 4, 0, 0, 0, 0, 0}, udp...), true},
		"routing, still live": {43, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, udp...), false},
		"atomic fragment":     {44, append([]byte{17, 0, 0, 0, 0, 0, 0, 9}, udp...), true},
	} {
		raw := craft(appAddr6, "2001:db8::7", c.proto, c.body)
		p, ok := parse(raw)
		if ok != c.ok || ok && (p.proto != protoUDP || !bytes.Equal(p.transport()[udpBytes:], udp[udpBytes:])) {
			t.Errorf("%s: ok %v, protocol %d", name, ok, p.proto)
		}
	}
}

// BenchmarkTranslate is one packet of an open flow without the system calls.
func BenchmarkTranslate(b *testing.B) {
	for name, a := range map[string][2]string{"v4": {appAddr4, "203.0.113.7"}, "v6": {appAddr6, "2001:db8::7"}} {
		b.Run(name, func(b *testing.B) {
			k, _ := newMemoryKernel(b, funcHandler{})
			openFlow(k, k.v4, appAddr4, "203.0.113.7")
			openFlow(k, k.v6, appAddr6, "2001:db8::7")
			raw := craft(a[0], a[1], protoTCP, tcpSegment(9, 80, 1, 1, tcpACK, ""))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, len(raw))
				for pb.Next() {
					copy(buf, raw)
					k.packet(b.Context(), nullQueue{}, buf)
				}
			})
		})
	}
}

// TestTranslateAllocates: a packet of an open flow costs no memory, whichever way
// it goes.
func TestTranslateAllocates(t *testing.T) {
	k, _ := newMemoryKernel(t, funcHandler{})
	openFlow(k, k.v4, appAddr4, "203.0.113.7")
	openFlow(k, k.v6, appAddr6, "2001:db8::7")
	for name, raw := range map[string][]byte{
		"v4 out": craft(appAddr4, "203.0.113.7", protoTCP, tcpSegment(9, 80, 1, 1, tcpACK, "x")),
		"v6 out": craft(appAddr6, "2001:db8::7", protoTCP, tcpSegment(9, 80, 1, 1, tcpACK, "x")),
		"v4 back": craft(k.v4.tun.netip().String(), k.v4.slots[0].Load().out.src.netip().String(), protoTCP,
			tcpSegment(k.v4.port, firstPeerPort, 1, 1, tcpACK, "x")),
		"v6 back": craft(k.v6.tun.netip().String(), k.v6.slots[0].Load().out.src.netip().String(), protoTCP,
			tcpSegment(k.v6.port, firstPeerPort, 1, 1, tcpACK, "x")),
	} {
		q, buf := &countingQueue{}, make([]byte, len(raw))
		if n := testing.AllocsPerRun(200, func() {
			copy(buf, raw)
			k.packet(t.Context(), q, buf)
		}); n != 0 || q.written != 201 { // once more to warm up
			t.Errorf("%s: %v allocations a packet, %d packets written", name, n, q.written)
		}
	}
}

type countingQueue struct {
	nullQueue
	written int
}

func (q *countingQueue) Write(p []byte) (int, error) {
	q.written++
	return len(p), nil
}

type nullQueue struct{}

func (nullQueue) Read([]byte) (int, error)    { return 0, nil }
func (nullQueue) Write(p []byte) (int, error) { return len(p), nil }
