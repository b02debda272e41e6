package route

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// dnsFake answers every datagram it is given.
type dnsFake struct {
	seen atomic.Int32
	idle time.Duration // 0: it waits for ever
}

func (d *dnsFake) HandleStream(_ context.Context, _ flow.Flow, p flow.Pending) {
	p.Reject(flow.Refused)
}

func (d *dnsFake) HandlePackets(_ context.Context, _ flow.Flow, app net.PacketConn) {
	defer app.Close()
	b := make([]byte, 4096)
	for {
		if d.idle != 0 {
			app.SetReadDeadline(time.Now().Add(d.idle))
		}
		n, to, err := app.ReadFrom(b)
		if err != nil {
			return
		}
		d.seen.Add(1)
		app.WriteTo(append([]byte("dns:"), b[:n]...), to)
	}
}

// message is a DNS message with one question, for example.com.
func message(flags, qtype uint16) string {
	m := []byte{0xab, 0xcd, byte(flags >> 8), byte(flags), 0, 1, 0, 0, 0, 0, 0, 0}
	m = append(m, "\x07example\x03com\x00"...)
	return string(append(m, byte(qtype>>8), byte(qtype), 0, 1))
}

const recursion = 0x0100

func lookup(qtype uint16) string { return message(recursion, qtype) }

func overTCP(m string) []byte { return append([]byte{byte(len(m) >> 8), byte(len(m))}, m...) }

// notQueries are datagrams that somebody else has to answer.
func notQueries() map[string]string {
	return map[string]string{
		"wireguard initiation":     "\x01\x00\x00\x00\x12\x34\x56\x78" + strings.Repeat("w", 140),
		"wireguard data":           "\x04\x00\x00\x00\x01\x00\x00\x00" + strings.Repeat("w", 56),
		"notify":                   message(4<<11, 6),
		"update":                   message(5<<11, 6),
		"transfer":                 message(0, typeAXFR),
		"response":                 message(0x8180, 1),
		"two questions":            lookup(1)[:5] + "\x02" + lookup(1)[6:] + lookup(1)[12:],
		"a name that does not end": lookup(1)[:20],
		"nothing":                  "",
		"text":                     "GET / HTTP/1.1\r\n\r\n",
	}
}

// TestPort53Packets: what is no query is carried, also among queries.
func TestPort53Packets(t *testing.T) {
	dns53, server := listenPort53(t)
	fake := &dnsFake{}
	h := handler(t, func(o *Options) { o.DNS = fake })
	for what, p := range notQueries() {
		a := newAppSocket()
		carryPackets(t, h, udpFlow(dns53), a)
		for range 2 {
			if d := a.ask(t, p, flow.UDPAddrOf(dns53)); d.data != "s:"+p || flow.AddrPortOf(d.addr) != dns53 {
				t.Errorf("%s: %q came back from %v", what, d.data, d.addr)
			}
			if d := a.ask(t, lookup(28), flow.UDPAddrOf(dns53)); d.data != "dns:"+lookup(28) {
				t.Errorf("%s: a query was answered %q", what, d.data)
			}
		}
		_ = a.Close()
	}
	server.Close()
}

// listenPort53 is a server on port 53 of a loopback address of its own.
func listenPort53(t *testing.T) (netip.AddrPort, net.PacketConn) {
	t.Helper()
	for i := range 20 {
		ap := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 53, byte(rand.Uint32()), byte(i + 1)}), 53)
		c, err := net.ListenPacket("udp", ap.String())
		if errors.Is(err, os.ErrPermission) {
			t.Skip("SKIPPED: not root: port 53 is privileged")
		}
		if err != nil {
			continue
		}
		go func() {
			b := make([]byte, 4096)
			for {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(append([]byte("s:"), b[:n]...), from)
			}
		}()
		t.Cleanup(func() { c.Close() })
		return ap, c
	}
	t.Fatal("no free port 53")
	return netip.AddrPort{}, nil
}

// streamDNS answers one query.
type streamDNS struct{ dnsFake }

func (d *streamDNS) HandleStream(_ context.Context, _ flow.Flow, p flow.Pending) {
	c, err := p.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	b := make([]byte, 2+len(lookup(1)))
	_, _ = io.ReadFull(c, b)
	_, _ = c.Write(append([]byte("dns:"), b...))
}

// TestPort53Streams: DNS gets streams that begin with a query, in whatever
// pieces; all others are carried, server-first ones too.
func TestPort53Streams(t *testing.T) {
	dns53, _ := listenPort53(t)
	ln, err := net.Listen("tcp", dns53.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = c.Write([]byte("s:")); echo(c.(*net.TCPConn)); c.Close() }()
		}
	}()
	query := string(overTCP(lookup(1)))
	for _, c := range []struct {
		what string
		say  []string
		dns  bool
	}{
		{"a query", []string{query}, true},
		{"a query in pieces", []string{query[:2], query[2:7], query[7:20], query[20:]}, true},
		{"nothing, and then the end", nil, false},
		{"tls", []string{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 600)}, false},
		{"http", []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n"}, false},
		{"one byte", []string{"x"}, false},
		{"a transfer", []string{string(overTCP(lookup(typeAXFR)))}, false},
		{"a transfer after SOA", []string{string(overTCP(lookup(6))), string(overTCP(lookup(typeAXFR)))}, false},
		{"an update", []string{string(overTCP(message(5<<11, 6)))}, false},
	} {
		h := handler(t, func(o *Options) { o.DNS = &streamDNS{} })
		app, in := pair(t)
		done := carry(h, t.Context(), tcpFlow(flow.TargetOf(dns53)), &pending{conn: in})
		for i, part := range c.say {
			if i > 0 && c.dns {
				time.Sleep(5 * time.Millisecond)
			}
			_, _ = app.Write([]byte(part))
		}
		if !c.dns {
			_ = app.CloseWrite()
		}
		want := "s:" + strings.Join(c.say, "")
		if c.dns {
			want = "dns:" + query
		}
		_ = app.SetReadDeadline(time.Now().Add(5 * time.Second))
		if got, err := io.ReadAll(app); string(got) != want {
			t.Errorf("%s: got %q, %v", c.what, got, err)
		}
		_ = app.Close()
		wait(t, done)
	}
}

// TestPort53ServerFirst: an app that waits for its server is not left waiting.
func TestPort53ServerFirst(t *testing.T) {
	dns53, _ := listenPort53(t)
	ln, err := net.Listen("tcp", dns53.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, _ = c.Write([]byte("SSH-2.0-x\r\n"))
			c.Close()
		}
	}()
	h := handler(t, func(o *Options) { o.DNS = &streamDNS{} })
	app, in := pair(t)
	done := carry(h, t.Context(), tcpFlow(flow.TargetOf(dns53)), &pending{conn: in})
	_ = app.SetReadDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(app); string(got) != "SSH-2.0-x\r\n" {
		t.Errorf("%q, %v", got, err)
	}
	_ = app.Close()
	wait(t, done)
}

// TestPort53Ours: what is sent to our own resolver is its, whatever it is.
func TestPort53Ours(t *testing.T) {
	ours := netip.MustParseAddrPort("198.18.0.2:53")
	h := handler(t, func(o *Options) {
		o.DNS = &dnsFake{}
		o.Resolve = func(a netip.Addr) (string, bool) { return "", a == ours.Addr() }
	})
	a := newAppSocket()
	carryPackets(t, h, udpFlow(ours), a)
	if d := a.ask(t, message(5<<11, 6), flow.UDPAddrOf(ours)); !strings.HasPrefix(d.data, "dns:") {
		t.Errorf("%q", d.data)
	}
}

// TestPacketsDNS: port 53 goes to DNS, whether it comes first or not, and
// other datagrams of the same socket go their way.
func TestPacketsDNS(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	dns53 := netip.MustParseAddrPort("9.9.9.9:53")
	for _, first := range []netip.AddrPort{dns53, server} {
		fake := &dnsFake{}
		h := handler(t, func(o *Options) { o.DNS = fake; o.Blocked = func() bool { return false } })
		a := newAppSocket()
		carryPackets(t, h, udpFlow(first), a)
		for range 3 {
			if d := a.ask(t, lookup(1), flow.UDPAddrOf(dns53)); d.data != "dns:"+lookup(1) || flow.AddrPortOf(d.addr) != dns53 {
				t.Errorf("%+v", d)
			}
			if d := a.ask(t, "x", flow.UDPAddrOf(server)); d.data != "s:x" {
				t.Errorf("%+v", d)
			}
		}
		if fake.seen.Load() != 3 {
			t.Errorf("DNS saw %d", fake.seen.Load())
		}
	}
}

// TestLookupsAreNoFlows, until their socket talks to somebody else.
func TestLookupsAreNoFlows(t *testing.T) {
	server, _ := udpServer(t, "s", "127.0.0.1:0")
	dns53 := netip.MustParseAddrPort("9.9.9.9:53")
	h := handler(t, func(o *Options) { o.DNS = &dnsFake{} })
	app, in := pair(t)
	_, _ = app.Write(overTCP(lookup(1)))
	h.HandleStream(t.Context(), tcpFlow(flow.TargetOf(dns53)), &pending{conn: in})
	a := newAppSocket()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.HandlePackets(ctx, udpFlow(dns53), a) }()
	a.ask(t, lookup(1), flow.UDPAddrOf(dns53))
	if c := h.Counters(); c != (Counters{}) || len(h.Flows()) != 0 {
		t.Errorf("two lookups: %+v, %+v", c, h.Flows())
	}
	a.ask(t, "x", flow.UDPAddrOf(server))
	a.ask(t, lookup(1), flow.UDPAddrOf(dns53))
	if c, l := h.Counters(), h.Flows(); c.Total != 1 || c.Open != 1 || len(l) != 1 || l[0].Flow.Target != flow.TargetOf(server) || l[0].Rule == "" {
		t.Errorf("a lookup and a flow: %+v, %+v", c, l)
	}
	cancel()
	wait(t, done)
	if c := h.Counters(); c.Total != 1 || c.Open != 0 || len(h.Flows()) != 0 {
		t.Errorf("at the end: %+v, %+v", c, h.Flows())
	}
}
