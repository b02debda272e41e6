package route

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// oneAddress is a CONNECT proxy to which names and addresses are dead but for
// one: it echoes what it is sent.
type oneAddress struct {
	status int    // for what is dead; 0: silence
	lives  string // host
	addrs  []netip.Addr

	mu    sync.Mutex
	asked []string // guarded by mu: hosts, in order
	first string   // guarded by mu: what came for the one that lives
}

func (p *oneAddress) serve(c *net.TCPConn) {
	req, err := http.ReadRequest(bufio.NewReaderSize(io.LimitReader(c, 1<<16), 16))
	if err != nil {
		return
	}
	host, _, _ := net.SplitHostPort(req.Host)
	p.mu.Lock()
	p.asked = append(p.asked, host)
	p.mu.Unlock()
	switch {
	case host == p.lives:
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		b := make([]byte, 64)
		n, _ := c.Read(b)
		p.mu.Lock()
		p.first += string(b[:n])
		p.mu.Unlock()
		_, _ = c.Write(b[:n])
	case p.status == 0:
		_, _ = c.Read(make([]byte, 1)) // until the other end gives up
	default:
		fmt.Fprintf(c, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", p.status)
	}
}

// dial has a flow dialled that came for a fake address, with first bytes.
func (p *oneAddress) dial(t *testing.T, dst, first string, early bool) (string, time.Duration) {
	t.Helper()
	u := newUpstream(t, "http://"+serve(t, p.serve).String(), upstream.Options{})
	if early {
		u.SetEarly(upstream.EarlyCarries)
	}
	h := handler(t, func(o *Options) {
		o.Current = func() *upstream.Upstream { return u }
		o.Addresses = func(_ context.Context, by *upstream.Upstream, name string) ([]netip.Addr, error) {
			if by != u || name != "a.example" {
				t.Errorf("looked up %s through %v", name, by.Spec().Name)
			}
			return p.addrs, nil
		}
	})
	f := tcpFlow(flow.Target{Name: "a.example", Port: 80})
	f.Dst = netip.AddrPortFrom(netip.MustParseAddr(dst), 80)
	begin := time.Now()
	app, in := pair(t)
	_, _ = app.Write([]byte(first))
	done := carry(h, t.Context(), f, &pending{conn: in})
	_ = app.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, len(first))
	n, _ := io.ReadFull(app, b)
	took := time.Since(begin)
	app.Close()
	wait(t, done)
	return string(b[:n]), took
}

func addrs(text ...string) (list []netip.Addr) {
	for _, s := range text {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

const hello = "\x16\x03\x01\x00\x20\x01\x00\x00\x1c\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaa"

// Where a proxy fails for a name, its addresses are tried, the family that was
// asked for first, and what the app has said arrives once.
func TestOtherAddresses(t *testing.T) {
	all := addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
	for _, tt := range []struct {
		name, dst, lives, first string
		status                  int
		early                   bool
		asked                   string
		atLeast, atMost         time.Duration
	}{
		{"502, IPv4 asked for", "198.18.1.1", "2001:db8::1", "hello", 502, false, "a.example 192.0.2.1 2001:db8::1", 0, addressDelay},
		{"503, IPv6 asked for", "fd61::1", "192.0.2.2", "hello", 503, false, "a.example 2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2", 0, addressDelay},
		{"504, ClientHello ahead", "198.18.1.1", "192.0.2.1", hello, 504, true, "a.example 192.0.2.1", 0, addressDelay},
		{"500, GET ahead", "198.18.1.1", "192.0.2.1", get, 500, true, "a.example 192.0.2.1", 0, addressDelay},
		{"silence", "198.18.1.1", "2001:db8::1", "hello", 0, false, "a.example 192.0.2.1 2001:db8::1", addressDelay + nextAddress, addressDelay + addressLimit},
		{"silence, ClientHello ahead", "198.18.1.1", "192.0.2.1", hello, 0, true, "a.example 192.0.2.1", addressDelay, addressDelay + addressLimit},
		{"a name that lives", "198.18.1.1", "a.example", "hello", 502, false, "a.example", 0, addressDelay},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := &oneAddress{status: tt.status, lives: tt.lives, addrs: all}
			back, took := p.dial(t, tt.dst, tt.first, tt.early)
			if want := tt.first[:min(64, len(tt.first))]; back != want || p.first != want {
				t.Errorf("back came %q, the target has %q", back, p.first)
			}
			if got := strings.Join(slices.Compact(p.asked), " "); got != tt.asked {
				t.Errorf("asked for %s, want %s", got, tt.asked)
			}
			if took < tt.atLeast || took > tt.atMost {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// What leads nowhere is refused as before, soon; other failures than the
// target's are no reason to try; and nothing is tried beside bytes that may be
// on one way only.
func TestOtherAddressesInVain(t *testing.T) {
	dead := addrs("192.0.2.1", "192.0.2.2")
	for _, tt := range []struct {
		name   string
		status int
		addrs  []netip.Addr
		asked  int
		atMost time.Duration
	}{
		{"all refuse", 502, dead, 3, addressDelay},
		{"no addresses", 502, nil, 1, addressDelay},
		{"not for this user", 403, dead, 1, addressDelay},
		{"login", 407, dead, 1, addressDelay},
		{"too many", 502, slices.Repeat(dead, 50), 1 + maxAddresses, addressLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := &oneAddress{status: tt.status, addrs: tt.addrs}
			if back, took := p.dial(t, "198.18.1.1", "x", false); back != "" || took > tt.atMost || len(p.asked) != tt.asked {
				t.Errorf("%q after %v, asked for %v", back, took, p.asked)
			}
		})
	}
	t.Run("GET ahead, and silence", func(t *testing.T) {
		t.Parallel()
		p := &oneAddress{lives: "192.0.2.1", addrs: dead}
		back, took := p.dial(t, "198.18.1.1", get, true)
		if back != get || p.first != get || took < 3*addressDelay {
			t.Errorf("%q after %v, asked for %v", back, took, p.asked)
		}
	})
}
