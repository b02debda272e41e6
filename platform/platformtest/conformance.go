package platformtest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Addresses that the suite gives to the TUN; those of the product.
var (
	addr4 = netip.MustParsePrefix("198.18.0.1/15")
	addr6 = netip.MustParsePrefix("fd61:746c:616e:7469::1/64")
	dns4  = netip.MustParseAddr("198.18.0.2")
)

// Run checks that a Host keeps the contract of platform.Host. newHost makes a
// fresh Host; it is called once for each part, after the Host before was
// closed, so that all may share one state directory. The machine is really
// changed: real Hosts run it in a network namespace.
//
// snapshot, if given, describes the machine's network as text; the suite
// compares it before and after whatever must leave no trace.
func Run(t *testing.T, newHost func() platform.Host, snapshot ...func() string) {
	state := func() string {
		var s string
		for _, f := range snapshot {
			s += f()
		}
		return s
	}
	parts := []struct {
		name string
		run  func(*testing.T, platform.Host)
	}{
		{"open and close a tun", testTUN},
		{"apply is idempotent", func(t *testing.T, h platform.Host) { testApply(t, h, state) }},
		{"a redirect comes and goes", func(t *testing.T, h platform.Host) { testRedirect(t, h, state) }},
		{"zero config restores", func(t *testing.T, h platform.Host) { testZero(t, h, state) }},
		{"a failed apply changes nothing", func(t *testing.T, h platform.Host) { testCancelled(t, h, state) }},
		{"control leaves a socket usable", testControl},
		{"close ends changes", testClose},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			before := state()
			h := newHost()
			p.run(t, h)
			if err := h.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			equal(t, "after close", state(), before)
		})
	}
}

func equal(t *testing.T, when, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var gl, wl string
		if i < len(g) {
			gl = g[i]
		}
		if i < len(w) {
			wl = w[i]
		}
		if gl != wl {
			t.Errorf("%s the machine differs:\n got %s\nwant %s", when, gl, wl)
		}
	}
}

// open makes a TUN and the configuration that sends everything into it.
func open(t *testing.T, h platform.Host) (tun.Device, platform.NetConfig) {
	t.Helper()
	dev, err := h.OpenTUN(platform.TUNConfig{Name: "atlantic0", MTU: 1500, Queues: 2, Addr4: addr4, Addr6: addr6})
	if err != nil {
		t.Fatalf("open tun: %v", err)
	}
	name, err := dev.Name()
	if err != nil || name == "" {
		t.Fatalf("tun name %q: %v", name, err)
	}
	return dev, platform.NetConfig{
		TUN: name, Addr4: addr4, Addr6: addr6, MTU: 1500,
		Default4: true, Default6: true, LAN: true, DNS: []netip.Addr{dns4},
	}
}

func testTUN(t *testing.T, h platform.Host) {
	dev, _ := open(t, h)
	if mtu, err := dev.MTU(); err != nil || mtu != 1500 {
		t.Errorf("mtu = %d, %v; want 1500", mtu, err)
	}
	readers := []func() error{func() error {
		for {
			if _, err := dev.Read([][]byte{make([]byte, 70000)}, make([]int, 1), 16); err != nil {
				return err
			}
		}
	}}
	if mq, ok := dev.(platform.MultiQueue); ok {
		readers = nil
		for _, q := range mq.Queues() {
			readers = append(readers, func() error { return drain(q) })
		}
		if len(readers) == 0 {
			t.Error("MultiQueue without a queue")
		}
	}
	ended := make(chan error, len(readers))
	for _, r := range readers {
		go func() { ended <- r() }()
	}
	time.Sleep(20 * time.Millisecond) // let them block
	if err := dev.Close(); err != nil {
		t.Errorf("close tun: %v", err)
	}
	for range readers {
		select {
		case <-ended:
		case <-time.After(3 * time.Second):
			t.Fatal("a read is still blocked 3 s after the TUN was closed")
		}
	}
	_ = dev.Close() // a second time must not panic
}

func drain(q platform.Queue) error {
	buf := make([]byte, 1<<16)
	for {
		if _, err := q.Read(buf); err != nil {
			return err
		}
	}
}

func testApply(t *testing.T, h platform.Host, state func() string) {
	dev, cfg := open(t, h)
	defer dev.Close()
	apply(t, h, cfg)
	first := state()
	apply(t, h, cfg)
	equal(t, "after the same Apply again", state(), first)

	narrow := cfg
	narrow.Default6, narrow.LAN, narrow.DNS = false, false, nil
	apply(t, h, narrow)
	apply(t, h, cfg)
	equal(t, "after a detour", state(), first)
}

// A Host that redirects nothing passes too.
func testRedirect(t *testing.T, h platform.Host, state func() string) {
	dev, cfg := open(t, h)
	defer dev.Close()
	opened := state()
	apply(t, h, cfg)
	redirected := cfg
	redirected.Redirect, redirected.RedirectExcept = 7777, []uint16{22}
	apply(t, h, redirected)
	on := state()
	apply(t, h, redirected)
	equal(t, "after the same redirect again", state(), on)
	apply(t, h, cfg)
	off := state()
	redirected.Redirect = 7778
	apply(t, h, redirected)
	redirected.Redirect = 7777
	apply(t, h, redirected)
	equal(t, "after another redirect", state(), on)
	apply(t, h, cfg)
	equal(t, "without the redirect again", state(), off)
	apply(t, h, redirected)
	apply(t, h, platform.NetConfig{})
	equal(t, "after a zero Apply", state(), opened)
}

func testZero(t *testing.T, h platform.Host, state func() string) {
	dev, cfg := open(t, h)
	defer dev.Close()
	opened := state()
	apply(t, h, platform.NetConfig{}) // nothing to undo
	equal(t, "after a zero Apply on a fresh Host", state(), opened)
	apply(t, h, cfg)
	apply(t, h, platform.NetConfig{})
	equal(t, "after a zero Apply", state(), opened)
	apply(t, h, cfg) // and it works again
}

func testCancelled(t *testing.T, h platform.Host, state func() string) {
	dev, cfg := open(t, h)
	defer dev.Close()
	before := state()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Apply(ctx, cfg); err == nil {
		t.Error("Apply with a cancelled context succeeded")
	}
	equal(t, "after a cancelled Apply", state(), before)

	cfg.TUN = "atlantic-none0"
	if _, fake := h.(*Host); !fake {
		if err := h.Apply(context.Background(), cfg); err == nil {
			t.Error("Apply with a TUN that does not exist succeeded")
		}
		equal(t, "after a failed Apply", state(), before)
	}
}

func apply(t *testing.T, h platform.Host, cfg platform.NetConfig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	given := slices.Clone(cfg.DNS)
	if err := h.Apply(ctx, cfg); err != nil {
		t.Fatalf("apply %+v: %v", cfg, err)
	}
	if !slices.Equal(given, cfg.DNS) {
		t.Error("Apply changed the caller's DNS list")
	}
}

func testControl(t *testing.T, h platform.Host) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := net.Dialer{Control: h.Control, Timeout: 3 * time.Second}
	conn, err := d.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatalf("dial loopback with Control: %v", err)
	}
	conn.Close()
	lc := net.ListenConfig{Control: h.Control}
	pc, err := lc.ListenPacket(context.Background(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen on udp with Control: %v", err)
	}
	pc.Close()
}

func testClose(t *testing.T, h platform.Host) {
	changes := h.Changes()
	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	timeout := time.After(3 * time.Second)
	for {
		select {
		case _, open := <-changes:
			if !open {
				return
			}
		case <-timeout:
			t.Fatal("Changes is still open 3 s after Close")
		}
	}
}
