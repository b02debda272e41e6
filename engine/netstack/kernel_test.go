package netstack

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// memoryQueue keeps what is written to it.
type memoryQueue struct {
	mu  sync.Mutex
	out [][]byte // guarded by mu
}

func (q *memoryQueue) Read([]byte) (int, error) { return 0, io.EOF }

func (q *memoryQueue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.out = append(q.out, bytes.Clone(p))
	return len(p), nil
}

func (q *memoryQueue) take() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.out
	q.out = nil
	return out
}

// funcHandler is a flow.Handler made of functions; a nil one ends at once.
type funcHandler struct {
	stream  func(context.Context, flow.Flow, flow.Pending)
	packets func(context.Context, flow.Flow, net.PacketConn)
}

func (h funcHandler) HandleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	if h.stream != nil {
		h.stream(ctx, f, p)
	}
}

func (h funcHandler) HandlePackets(ctx context.Context, f flow.Flow, c net.PacketConn) {
	if h.packets != nil {
		h.packets(ctx, f, c)
	}
}

// newMemoryKernel is a kernel path without device; packets are given to it by
// hand. Its flows end with the test.
func newMemoryKernel(t testing.TB, h flow.Handler) (*kernel, *memoryQueue) {
	t.Helper()
	k, err := newTranslator(Options{MTU: 1500, Handler: h, Log: slog.New(slog.DiscardHandler),
		Addr4: netip.MustParsePrefix("198.18.0.1/15"), Addr6: netip.MustParsePrefix("fd61:746c:616e:7469::1/64")})
	if err != nil {
		t.Fatal(err)
	}
	k.v4.port, k.v6.port = 40000, 40006
	t.Cleanup(func() {
		k.gate.Lock()
		k.ending = true
		k.gate.Unlock()
		close(k.done)
		k.udp.each(func(_ tuple, s *udpSession) { s.Close() })
		k.flows.Wait()
	})
	return k, new(memoryQueue)
}

// craft makes a packet with correct checksums.
func craft(src, dst string, proto uint8, transport []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	b := make([]byte, bufferHead+len(transport))
	head := ipHeaderBytes(s.Is6())
	raw := b[bufferHead-head-vnetBytes:]
	putIP(raw[vnetBytes:], s.Is6(), addrOf(s), addrOf(d), proto, len(transport))
	t := raw[vnetBytes+head:]
	copy(t, transport)
	if at := checksumAt(proto); at > 0 && len(t) > at+1 {
		t[at], t[at+1] = 0, 0
		binary.BigEndian.PutUint16(t[at:], ^naiveSum(pseudo(raw[vnetBytes:], proto, len(t)), t))
	}
	return raw
}

func checksumAt(proto uint8) int {
	switch proto {
	case protoTCP:
		return 16
	case protoUDP:
		return 6
	case protoICMP, protoICMP6:
		return 2
	}
	return -1 // no checksum of ours
}

// pseudo is the pseudo header as bytes; none for ICMP.
func pseudo(ip []byte, proto uint8, n int) []byte {
	if proto == protoICMP {
		return nil
	}
	addrs := ip[12:20]
	if ip[0]>>4 == 6 {
		addrs = ip[8:40]
	}
	return append(bytes.Clone(addrs), 0, proto, byte(n>>8), byte(n))
}

// naiveSum is RFC 1071 word by word.
func naiveSum(parts ...[]byte) uint16 {
	s := uint32(0)
	for _, b := range parts {
		for i := range b {
			w := uint32(b[i])
			if i%2 == 0 {
				w <<= 8
			}
			s += w
			s = s>>16 + s&0xffff
		}
	}
	return uint16(s)
}

// correct reports whether a packet's checksums are right, as the receiving
// kernel would find them.
func correct(t testing.TB, raw []byte) bool {
	t.Helper()
	p, ok := parse(raw)
	if !ok {
		t.Errorf("a malformed packet: %x", raw)
		return false
	}
	if !p.v6 && naiveSum(p.ip[:int(p.ip[0]&15)*4]) != 0xffff {
		return false
	}
	if p.fragment {
		return true
	}
	if checksumAt(p.proto) < 0 {
		return true
	}
	at, part := checksumAt(p.proto), pseudo(p.ip, p.proto, len(p.transport()))
	if p.partial() {
		return binary.BigEndian.Uint16(p.transport()[at:])%0xffff == naiveSum(part)%0xffff
	}
	return naiveSum(part, p.transport()) == 0xffff
}

func tcpSegment(sport, dport uint16, seq, ack uint32, flags byte, data string) []byte {
	b := make([]byte, tcpBytes, tcpBytes+len(data))
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, flags
	return append(b, data...)
}

func udpDatagram(sport, dport uint16, data string) []byte {
	b := make([]byte, udpBytes, udpBytes+len(data))
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(udpBytes+len(data)))
	return append(b, data...)
}

func (k *kernel) give(q *memoryQueue, raw []byte) {
	k.packet(context.Background(), q, bytes.Clone(raw))
}

const appAddr4, appAddr6 = "198.18.0.1", "fd61:746c:616e:7469::1"

// TestSilence holds what must not be answered: LP-04, LP-05.
func TestSilence(t *testing.T) {
	echo := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	echo6 := []byte{128, 0, 0, 0, 0, 1, 0, 1}
	unreach := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, craft("203.0.113.7", appAddr4, protoUDP, udpDatagram(9, 9, ""))[vnetBytes:]...)
	syn := tcpSegment(9, 9, 1, 0, tcpSYN, "")
	dying := craft(appAddr4, "203.0.113.7", protoTCP, syn)
	dying[vnetBytes+8] = 1
	for name, raw := range map[string][]byte{
		"LAND":                      craft("203.0.113.7", "203.0.113.7", protoTCP, syn),
		"LAND on the tun's address": craft(appAddr4, appAddr4, protoTCP, syn),
		"to the tun itself":         craft("10.0.0.1", appAddr4, protoUDP, udpDatagram(9, 9, "x")),
		"to a peer":                 craft("10.0.0.1", "198.18.0.16", protoTCP, syn),
		"to a peer by udp":          craft(appAddr4, "198.18.0.200", protoUDP, udpDatagram(9, 9, "x")),
		"from a peer":               craft("198.18.0.255", "203.0.113.7", protoTCP, syn),
		"broadcast":                 craft(appAddr4, "255.255.255.255", protoUDP, udpDatagram(9, 9, "x")),
		"the prefix's broadcast":    craft(appAddr4, "198.19.255.255", protoICMP, echo),
		"multicast":                 craft(appAddr4, "224.0.0.251", protoUDP, udpDatagram(9, 9, "x")),
		"echo to multicast":         craft(appAddr6, "ff02::1", protoICMP6, echo6),
		"loopback":                  craft(appAddr4, "127.0.0.1", protoTCP, syn),
		"unspecified source":        craft("0.0.0.0", "203.0.113.7", protoTCP, syn),
		"TTL 1":                     dying,
		"ICMP about UDP":            craft(appAddr4, "203.0.113.7", protoICMP, unreach),
		"ICMP about ICMP":           craft(appAddr4, "203.0.113.7", protoICMP, append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, craft("203.0.113.7", appAddr4, protoICMP, echo)[vnetBytes:]...)),
		"RST of nobody's":           craft(appAddr4, "203.0.113.7", protoTCP, tcpSegment(9, 9, 1, 1, tcpRST|tcpACK, "")),
		"RST to a peer":             craft(appAddr4, "198.18.0.16", protoTCP, tcpSegment(40000, 9, 1, 1, tcpRST, "")),
		"UDP with a wrong checksum": func() []byte {
			r := craft(appAddr4, "203.0.113.7", protoUDP, udpDatagram(9, 9, "x"))
			r[len(r)-1]++
			return r
		}(),
		"an unknown protocol":      craft(appAddr4, "203.0.113.7", 132, make([]byte, 40)),
		"a neighbour solicitation": craft("fe80::1", "ff02::1:ff00:1", protoICMP6, []byte{135, 0, 0, 0, 0, 0, 0, 0}),
		"link-local":               craft("fe80::1", "fe80::2", protoICMP6, echo6),
	} {
		t.Run(name, func(t *testing.T) {
			called := false
			k, q := newMemoryKernel(t, funcHandler{
				stream:  func(context.Context, flow.Flow, flow.Pending) { called = true },
				packets: func(context.Context, flow.Flow, net.PacketConn) { called = true },
			})
			k.give(q, raw)
			k.flows.Wait()
			if out := q.take(); len(out) > 0 || called {
				t.Errorf("answered with %x, handler called: %v", out, called)
			}
		})
	}
}

// TestReset checks the two forms of RFC 9293 section 3.10.7.1.
func TestReset(t *testing.T) {
	k, q := newMemoryKernel(t, funcHandler{})
	for _, c := range []struct {
		in       []byte
		seq, ack uint32
		flags    byte
	}{
		{tcpSegment(1, 2, 100, 200, tcpACK, "data"), 200, 0, tcpRST},
		{tcpSegment(1, 2, 100, 0, tcpFIN, "data"), 0, 105, tcpRST | tcpACK},
		{tcpSegment(1, 2, 100, 0, tcpSYN, ""), 0, 101, tcpRST | tcpACK}, // the handler returns without a word
	} {
		for _, addrs := range [][2]string{{appAddr4, "203.0.113.7"}, {appAddr6, "2001:db8::7"}} {
			k.give(q, craft(addrs[0], addrs[1], protoTCP, c.in))
			k.flows.Wait()
			out := q.take()
			if len(out) != 1 {
				t.Fatalf("%d packets, want 1", len(out))
			}
			p, _ := parse(out[0])
			s := p.transport()
			if p.src.netip().String() != addrs[1] || p.tuple().sport != 2 || s[13] != c.flags ||
				binary.BigEndian.Uint32(s[4:]) != c.seq || binary.BigEndian.Uint32(s[8:]) != c.ack || !correct(t, out[0]) {
				t.Errorf("%x was answered with %x", c.in, s)
			}
		}
	}
}

// TestPendingBound floods with SYNs that nobody answers (LD-05).
func TestPendingBound(t *testing.T) {
	k, q := newMemoryKernel(t, nil)
	k.handler = funcHandler{stream: func(_ context.Context, _ flow.Flow, _ flow.Pending) { <-k.done }}
	flood := func(dst string, n int) (refused int) {
		for i := range n {
			k.give(q, craft(appAddr4, dst, protoTCP, tcpSegment(uint16(1000+i), 80, 1, 0, tcpSYN, "")))
		}
		return len(q.take())
	}
	if n := flood("203.0.113.7", maxPendingTo+10); n != 10 {
		t.Errorf("%d refused, want 10: one destination must leave room", n)
	}
	if n := flood("203.0.113.8", 10); n != 0 {
		t.Errorf("%d refused of those to another destination, want 0", n)
	}
	for i := range 8 {
		flood(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}).String(), 2000)
	}
	if n := k.pending.Load(); n != maxPending {
		t.Errorf("%d handshakes are held, want %d", n, maxPending)
	}
}

// TestFlowTableFull checks that flows in TIME_WAIT leave for new ones, that
// open ones do not, and that every slot comes back.
func TestFlowTableFull(t *testing.T) {
	f, err := newFamily(netip.MustParsePrefix("198.18.0.1/15"))
	if err != nil {
		t.Fatal(err)
	}
	var flows []*tcpFlow
	seen := make(map[tuple]bool)
	take := func() bool {
		var evicted *tcpFlow
		slot, peer, ok := f.take(func(old *tcpFlow) { evicted = old })
		if !ok {
			return false
		}
		if evicted != nil && evicted.slot != slot {
			t.Fatalf("slot %d was given for %d", slot, evicted.slot)
		}
		at := tuple{src: peer, sport: slot + firstPeerPort}
		if _, ok := f.peerIndex(peer); !ok || seen[at] {
			t.Fatalf("peer %v:%d is not a free one", peer.netip(), at.sport)
		}
		seen[at] = true
		flows = append(flows, &tcpFlow{slot: slot})
		return true
	}
	for range maxFlows {
		if !take() {
			t.Fatal("full too early")
		}
	}
	if take() {
		t.Fatal("more flows than slots")
	}
	f.closed.push(flows[7])
	if !take() || take() {
		t.Error("want room for exactly one flow")
	}
	for _, fl := range flows {
		f.release(fl) // the evicted one has given its slot away
		f.release(fl)
	}
	if n := f.free.len(); n != maxFlows {
		// flows[7] is gone: its slot belongs to the last flow
		t.Errorf("%d slots are free, want %d", n, maxFlows)
	}
}

func TestExpireTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, q := newMemoryKernel(t, funcHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
			p.Accept() // there is no listener: fails after flow.AcceptWithin
		}})
		give := func(flags byte) {
			k.give(q, craft(appAddr4, "203.0.113.7", protoTCP, tcpSegment(1, 2, 1, 1, flags, "")))
		}
		give(tcpSYN)
		synctest.Wait()
		out := q.take()
		if len(out) != 1 || !correct(t, out[0]) {
			t.Fatalf("the SYN was not passed on: %x", out)
		}
		p, _ := parse(out[0])
		if p.dst != k.v4.tun || p.tuple().dport != k.v4.port || !k.v4.isPeer(p.src) {
			t.Errorf("the SYN went from %v to %v", p.src.netip(), p.dst.netip())
		}
		time.Sleep(flow.AcceptWithin + tcpTimeWait + time.Second)
		k.expireTCP(k.now())
		if n := k.tcp.count.Load(); n != 0 {
			t.Errorf("%d flows are left after the handshake failed", n)
		}
		give(tcpSYN)
		synctest.Wait()
		key := tuple{src: p.src}
		k.tcp.each(func(at tuple, f *tcpFlow) {
			key = at
			f.phase.Store(open)
			f.waiting.Swap(nil).conn <- new(net.TCPConn)
		})
		time.Sleep(idleTCP - time.Second)
		k.expireTCP(k.now())
		if k.tcp.get(&key) == nil {
			t.Error("an open flow was forgotten too early")
		}
		time.Sleep(2 * time.Second)
		k.expireTCP(k.now())
		if k.tcp.get(&key) != nil {
			t.Error("a silent flow is kept")
		}
	})
}
