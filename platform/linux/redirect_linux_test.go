package linux

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// redirected is a listener of both families, as the netstack has it.
type redirected struct {
	port  uint16
	conns chan net.Conn
}

func listenRedirected(t *testing.T) *redirected {
	t.Helper()
	r := &redirected{conns: make(chan net.Conn, 16)}
	for _, address := range []string{"0.0.0.0:7777", "[::1]:7777"} {
		network := "tcp4"
		if strings.HasPrefix(address, "[") {
			network = "tcp6"
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		r.port = netip.MustParseAddrPort(l.Addr().String()).Port()
		go func() { // ends with l
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				r.conns <- c
			}
		}()
	}
	return r
}

// taken dials and reports both ends if the connection came to the listener.
func (r *redirected) taken(t *testing.T, address string, control func(string, string, syscall.RawConn) error) (app, ours net.Conn) {
	t.Helper()
	d := net.Dialer{Timeout: 500 * time.Millisecond, Control: control}
	c, err := d.Dial("tcp", address)
	if err != nil { // nobody reads the TUN
		select {
		case <-r.conns:
			t.Errorf("%s: taken, yet %v", address, err)
		default:
		}
		return nil, nil
	}
	t.Cleanup(func() { c.Close() })
	select {
	case ours = <-r.conns:
		t.Cleanup(func() { ours.Close() })
		return c, ours
	case <-time.After(5 * time.Second):
		t.Errorf("%s: connected, but not to the listener", address)
		return nil, nil
	}
}

func bothWays(app, ours net.Conn) error {
	for _, c := range []net.Conn{app, ours} {
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	for _, p := range [][2]net.Conn{{app, ours}, {ours, app}} {
		if _, err := p[0].Write([]byte("x")); err != nil {
			return err
		}
		if _, err := io.ReadFull(p[1], make([]byte, 1)); err != nil {
			return err
		}
	}
	return nil
}

func TestRedirect(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	r := listenRedirected(t)
	if app, _ := r.taken(t, "203.0.113.50:80", nil); app != nil {
		t.Fatal("redirected before anybody asked for it")
	}
	if limit := conntrackTimeout(t, "203.0.113.50"); limit == 0 || limit > 20 {
		t.Errorf("conntrack keeps a SYN into the TUN for %d s", limit)
	}
	on := everything()
	on.Redirect, on.RedirectExcept = r.port, []uint16{22, 25}
	applyTo(t, h, on)
	app4, ours4 := r.taken(t, "203.0.113.50:80", nil)
	app6, ours6 := r.taken(t, "[fd61:746c:616e:7469::99]:80", nil)
	if app4 == nil || app6 == nil {
		t.Fatalf("not redirected:\n%s", run(t, "nft", "list", "ruleset"))
	}
	for _, address := range []string{"203.0.113.50:22", "203.0.113.50:25", "[2001:db8::50]:80"} {
		if app, _ := r.taken(t, address, nil); app != nil {
			t.Errorf("%s is redirected", address)
		}
	}
	if app, _ := r.taken(t, "203.0.113.50:80", h.Control); app != nil {
		t.Error("a socket of ours is redirected: a loop")
	}
	if limit := conntrackTimeout(t, "203.0.113.50"); limit <= 20 || limit > 3600 {
		t.Errorf("conntrack keeps the connection for %d s", limit)
	}

	applyTo(t, h, everything())
	if app, _ := r.taken(t, "203.0.113.50:80", nil); app != nil {
		t.Error("redirected after the end of it")
	}
	if err := bothWays(app4, ours4); err != nil {
		t.Errorf("a redirected connection was lost at the end of the redirect: %v", err)
	}
	if err := bothWays(app6, ours6); err != nil {
		t.Errorf("IPv6: a redirected connection was lost at the end of the redirect: %v", err)
	}
	app4.Close()
	ours4.Close()
	if limit := conntrackTimeout(t, "203.0.113.50"); limit > 20 {
		t.Errorf("conntrack keeps a connection that has ended for %d s", limit)
	}
}

func applyTo(t *testing.T, h *Host, cfg platform.NetConfig) {
	t.Helper()
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
}

// conntrackTimeout is for how many seconds a connection to dst is still
// remembered, the longest if there are several.
func conntrackTimeout(t *testing.T, dst string) uint32 {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var longest uint32
	for _, f := range flows {
		if f.Forward.DstIP.String() == dst {
			longest = max(longest, f.TimeOut)
		}
	}
	return longest
}

// A reload of somebody's firewall takes our table with it.
func TestRedirectRepaired(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	r := listenRedirected(t)
	on := everything()
	on.Redirect = r.port
	applyTo(t, h, on)
	app, ours := r.taken(t, "203.0.113.50:80", nil)
	for _, line := range []string{"nft flush ruleset", "nft flush chain inet atlantic loopback"} {
		run(t, strings.Fields(line)...)
		waitFor(t, "repair of "+line, func() bool {
			return strings.Contains(run(t, "nft", "list", "ruleset"), ":7777")
		})
		if err := bothWays(app, ours); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if again, _ := r.taken(t, "203.0.113.50:80", nil); again == nil {
		t.Error("not redirected after the repair")
	}
}
