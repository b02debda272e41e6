package route

import (
	"context"
	"net"
	"net/netip"
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
			if d := a.ask(t, "q", flow.UDPAddrOf(dns53)); d.data != "dns:q" || flow.AddrPortOf(d.addr) != dns53 {
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
	_, in := pair(t)
	h.HandleStream(t.Context(), tcpFlow(flow.TargetOf(dns53)), &pending{conn: in})
	a := newAppSocket()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.HandlePackets(ctx, udpFlow(dns53), a) }()
	a.ask(t, "q", flow.UDPAddrOf(dns53))
	if c := h.Counters(); c != (Counters{}) || len(h.Flows()) != 0 {
		t.Errorf("two lookups: %+v, %+v", c, h.Flows())
	}
	a.ask(t, "x", flow.UDPAddrOf(server))
	a.ask(t, "q", flow.UDPAddrOf(dns53))
	if c, l := h.Counters(), h.Flows(); c.Total != 1 || c.Open != 1 || len(l) != 1 || l[0].Flow.Target != flow.TargetOf(server) || l[0].Rule == "" {
		t.Errorf("a lookup and a flow: %+v, %+v", c, l)
	}
	cancel()
	wait(t, done)
	if c := h.Counters(); c.Total != 1 || c.Open != 0 || len(h.Flows()) != 0 {
		t.Errorf("at the end: %+v, %+v", c, h.Flows())
	}
}
