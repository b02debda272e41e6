package route

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// dials notes by which upstreams flows were dialled.
type dials struct {
	mu   sync.Mutex
	seen []*upstream.Upstream // guarded by mu
}

func (d *dials) observe(u *upstream.Upstream, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, u)
}

// first is by which one; nil if none was.
func (d *dials) first() *upstream.Upstream {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.seen) == 0 {
		return nil
	}
	return d.seen[0]
}

// randomWorld is a Handler with random rules and policies, before upstreams that
// refuse: ports 1 to 3 of loopback are closed.
func randomWorld(t *testing.T, r *rand.Rand, program string) (*Handler, *dials) {
	t.Helper()
	pick := func(from ...string) []string {
		var out []string
		for _, s := range from {
			if r.IntN(3) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	var list []rules.Rule
	for range r.IntN(5) {
		x := rules.Rule{
			Domain: pick("a.example", "b.example"), DomainSuffix: pick("example", "lan"), Process: pick("curl", "/usr/bin/ssh"),
			Via: []string{"auto", "direct", "block", "one", "two", "gone"}[r.IntN(6)],
		}
		if r.IntN(3) == 0 {
			x.CIDR = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/30")}
		}
		if r.IntN(3) == 0 {
			x.Port = []rules.PortRange{{From: 1, To: uint16(1 + r.IntN(3))}}
		}
		if len(x.Domain)+len(x.DomainSuffix)+len(x.Process)+len(x.CIDR)+len(x.Port) > 0 {
			list = append(list, x)
		}
	}
	set, err := rules.Compile(list)
	if err != nil {
		t.Fatal(err)
	}
	seen := &dials{}
	h := handler(t, func(o *Options) {
		named := map[string]*upstream.Upstream{
			"one": newUpstream(t, "http://127.0.0.1:1", upstream.Options{}),
			"two": newUpstream(t, "socks5://127.0.0.1:1", upstream.Options{}),
		}
		current := []*upstream.Upstream{o.Direct, named["one"], named["two"]}[r.IntN(3)]
		o.Rules, o.Observe = set, seen.observe
		o.Named = func(name string) *upstream.Upstream { return named[name] }
		o.Current = func() *upstream.Upstream { return current }
		o.UDP = UDPPolicy(r.IntN(3))
		o.Local = func(name string, a netip.Addr) bool {
			return strings.HasSuffix(name, ".lan") || a == netip.MustParseAddr("127.0.0.9")
		}
		o.Resolve = func(a netip.Addr) (string, bool) {
			switch a.String() {
			case "198.18.0.1":
				return "a.example", true
			case "127.0.0.2":
				return "b.example", false
			}
			return "", strings.HasPrefix(a.String(), "198.18.")
		}
		o.Process = func(string, netip.AddrPort, netip.AddrPort) string { return program }
	})
	return h, seen
}

// TestExplainIsWhatHappens: what Explain says of a flow is what becomes of it,
// whatever the rules, the policies, the target and the program are.
func TestExplainIsWhatHappens(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range 400 {
		program := []string{"", "/usr/bin/curl", "/usr/bin/ssh", "/bin/other"}[r.IntN(4)]
		h, seen := randomWorld(t, r, program)
		target := flow.Target{Port: uint16(1 + r.IntN(3))}
		switch r.IntN(3) {
		case 0:
			target.Name = []string{"a.example", "b.example", "c.example", "nas.lan", "other.test"}[r.IntN(5)]
		default:
			target.Addr = netip.MustParseAddr([]string{"127.0.0.1", "127.0.0.2", "127.0.0.5", "127.0.0.9", "198.18.0.1", "198.18.0.7"}[r.IntN(6)])
		}
		network := []flow.Network{flow.TCP, flow.UDP}[r.IntN(2)]
		said := h.Explain(network, target, program)
		want := said.Upstream
		if said.NoUDP {
			want = nil
		}
		happens := streamsBy
		if network == flow.UDP {
			happens = packetsBy
		}
		if got := happens(t, h, seen, target); got != want {
			t.Fatalf("flow %d, %s to %s of %q: it goes %s, and Explain says %s (%+v)", n, network, target, program, nameOf(got), nameOf(want), said)
		}
	}
}

func nameOf(u *upstream.Upstream) string {
	if u == nil {
		return "nowhere"
	}
	return fmt.Sprintf("by %s", u.Spec().Scheme)
}

// streamsBy opens a connection and says who was asked for it.
func streamsBy(t *testing.T, h *Handler, seen *dials, to flow.Target) *upstream.Upstream {
	t.Helper()
	app, in := pair(t)
	defer app.Close()
	f := tcpFlow(to)
	f.Inbound = flow.SOCKS5
	wait(t, carry(h, t.Context(), f, &pending{conn: in}))
	return seen.first()
}

// packetsBy sends a datagram and says who was asked for it.
func packetsBy(t *testing.T, h *Handler, seen *dials, to flow.Target) *upstream.Upstream {
	t.Helper()
	a := newAppSocket()
	f := flow.Flow{ID: flow.NextID(), Network: flow.UDP, Inbound: flow.SOCKS5, Dst: to.AddrPort(), Target: to, Start: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.HandlePackets(ctx, f, a) }()
	var dst net.Addr = flow.UDPAddrOf(f.Dst)
	if to.Name != "" {
		dst = upstream.NameAddr{Name: to.Name, Port: to.Port}
	}
	a.in <- datagram{"x", dst}
	for c := h.Counters(); seen.first() == nil && c.UDPBlocked == 0; c = h.Counters() {
		time.Sleep(time.Millisecond)
	}
	a.Close()
	cancel()
	wait(t, done)
	return seen.first()
}
