package route

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform/linux"
)

// as runs f as another user.
func as(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		unix.SetfsuidRetUid(uid)
		f()
	}()
	<-done
}

// TestFlowsKeepTheirAskersRights: real sockets of three users; what is told is
// what the kernel says of them.
func TestFlowsKeepTheirAskersRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can be another user")
	}
	const alice, bob, root = 65534, 65533, 0
	var host linux.Host
	var l net.Listener
	as(alice, func() { l, _ = net.Listen("tcp", "127.0.0.1:0") })
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "alice's")
			c.Close()
		}
	}()
	port := flow.AddrPortOf(l.Addr()).Port()
	resolve := func(_ context.Context, name string) ([]netip.Addr, error) {
		return []netip.Addr{map[string]netip.Addr{
			"localhost": netip.MustParseAddr("127.0.0.1"), "metadata.internal": netip.MustParseAddr("169.254.169.254"),
		}[name]}, nil
	}
	set, err := rules.Compile([]rules.Rule{
		{CIDR: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Port: []rules.PortRange{{From: 1, To: 65535}}, Via: "direct"},
	})
	if err != nil {
		t.Fatal(err)
	}
	broad, err := rules.Compile([]rules.Rule{{Port: []rules.PortRange{{From: 1, To: 65535}}, Via: "direct"}})
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string, port uint16) flow.Target {
		return flow.TargetOf(netip.AddrPortFrom(netip.MustParseAddr(s), port))
	}
	for _, tt := range []struct {
		what   string
		asker  int
		rules  *rules.Set
		target flow.Target
		want   flow.Reason // 0: it answers
	}{
		{"one's own", alice, nil, at("127.0.0.1", port), 0},
		{"another's", bob, nil, at("127.0.0.1", port), flow.Forbidden},
		{"another's, mapped", bob, nil, at("::ffff:127.0.0.1", port), flow.Forbidden},
		{"another's, unspecified", bob, nil, at("0.0.0.0", port), flow.Forbidden},
		{"another's, by name", bob, nil, flow.Target{Name: "localhost", Port: port}, flow.Forbidden},
		{"one's own, by name", alice, nil, flow.Target{Name: "localhost", Port: port}, 0},
		{"root's", root, nil, at("127.0.0.1", port), 0},
		{"another's, by a rule", bob, set, at("127.0.0.1", port), 0},
		{"another's, by a rule for something else", bob, broad, at("127.0.0.1", port), flow.Forbidden},
		{"nobody's", bob, nil, at("127.0.0.1", 1), flow.Refused},
		{"metadata", bob, nil, at("169.254.169.254", 80), flow.Forbidden},
		{"metadata by name", bob, nil, flow.Target{Name: "metadata.internal", Port: 80}, flow.Forbidden},
		{"metadata, IPv6", alice, nil, at("fd00:ec2::254", 80), flow.Forbidden},
		{"a neighbour on the link", alice, nil, at("fe80::1%lo", 80), flow.Forbidden},
	} {
		t.Run(tt.what, func(t *testing.T) {
			direct := newUpstream(t, "direct://", upstream.Options{Resolve: resolve})
			h := handler(t, func(o *Options) {
				o.Rules, o.Direct, o.Owner = tt.rules, direct, host.Owner
				o.Current = func() *upstream.Upstream { return direct }
			})
			var app, in *net.TCPConn
			as(tt.asker, func() { app, in = pair(t) })
			f := tcpFlow(tt.target)
			f.Src, f.Door = flow.AddrPortOf(app.LocalAddr()), flow.AddrPortOf(in.LocalAddr())
			p := &speaker{pending: pending{conn: in}}
			done := make(chan struct{})
			go func() { defer close(done); h.HandleStream(t.Context(), f, p) }()
			if tt.want == 0 {
				app.CloseWrite()
				if b, err := io.ReadAll(app); string(b) != "alice's" {
					t.Errorf("%q, %v", b, err)
				}
			}
			wait(t, done)
			if p.rejected != tt.want {
				t.Errorf("rejected: %v, want %v", p.rejected, tt.want)
			}
		})
	}
}

// TestRootAndOurselves: root's agents reach the metadata; nobody reaches the
// local proxy through itself, by whatever name of this machine.
func TestRootAndOurselves(t *testing.T) {
	door := netip.MustParseAddrPort("127.0.0.1:7890")
	h := handler(t, func(o *Options) {
		o.Owner = func(string, netip.AddrPort, netip.AddrPort) (uint32, bool) { return 0, true }
	})
	f := flow.Flow{Network: flow.TCP, Inbound: flow.HTTP, Door: door}
	for to, want := range map[string]error{
		"169.254.169.254:80": nil, "127.0.0.1:80": nil, "127.0.0.1:7890": errOurselves, "127.0.1.1:7890": errOurselves,
		"[::1]:7890": errOurselves, "[::ffff:127.0.0.1]:7890": errOurselves, "0.0.0.0:7890": errOurselves, "[::]:7890": errOurselves, "192.0.2.1:7890": nil,
	} {
		if err := h.mayReach(f, netip.MustParseAddrPort(to)); !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v, want %v", to, err, want)
		}
	}
	unknown := handler(t, func(o *Options) {
		o.Owner = func(string, netip.AddrPort, netip.AddrPort) (uint32, bool) { return 0, false }
	})
	if err := unknown.mayReach(f, netip.MustParseAddrPort("169.254.169.254:80")); !errors.Is(err, errLinkLocal) {
		t.Errorf("an app that cannot be told: %v", err)
	}
}
