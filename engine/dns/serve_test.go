package dns

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/miekg/dns"
)

// pending accepts one TCP connection.
type pending struct{ conn *net.TCPConn }

func (p pending) Accept() (flow.StreamConn, error) { return p.conn, nil }
func (p pending) Reject(flow.Reason)               { p.conn.Close() }

// listenBoth takes a port that is free for TCP and for UDP.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for try := 0; ; try++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc
		}
		l.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
}

// serveT serves s on loopback sockets until the test ends.
func serveT(t *testing.T, s *Server) (address string) {
	t.Helper()
	l, pc := listenBoth(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { s.HandlePackets(ctx, flow.Flow{}, pc); done <- struct{}{} }()
	go func() {
		defer func() { done <- struct{}{} }()
		var n atomic.Int32
		finished := make(chan struct{}, 100)
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			n.Add(1)
			go func() { s.HandleStream(ctx, flow.Flow{}, pending{c.(*net.TCPConn)}); finished <- struct{}{} }()
		}
		for range n.Load() {
			<-finished
		}
	}()
	t.Cleanup(func() {
		l.Close()
		cancel()
		for range 2 {
			select {
			case <-done:
			case <-time.After(3 * time.Second):
				t.Error("a handler did not end with its context")
			}
		}
	})
	return l.Addr().String()
}

func TestServeUDPAndTCP(t *testing.T) {
	s := newServerT(t, Options{Exchange: func(ctx context.Context, q []byte) ([]byte, error) {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
		return responder(0, "slow.test. 60 IN TXT \"x\"")(ctx, q)
	}})
	addr := serveT(t, s)
	for _, network := range []string{"udp", "tcp"} {
		c := &dns.Client{Net: network, Timeout: 2 * time.Second}
		r, _, err := c.Exchange(query("www.test.", dns.TypeA), addr)
		if err != nil || len(r.Answer) != 1 {
			t.Fatal(network, err)
		}
		if r, _, err = c.Exchange(query("slow.test.", dns.TypeTXT), addr); err != nil || len(r.Answer) != 1 {
			t.Fatal(network, err)
		}
	}

	// RFC 7766: many queries in one write, quick answers overtake slow ones,
	// and answers come after the client's FIN.
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := writeMessage(conn, mustPack(query("slow2.test.", dns.TypeTXT))); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if err := writeMessage(conn, mustPack(query("fast.test.", dns.TypeA))); err != nil {
			t.Fatal(err)
		}
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	var names []string
	for range 51 {
		b, err := readMessage(conn, nil)
		if err != nil {
			t.Fatal(len(names), err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		names = append(names, m.Question[0].Name)
	}
	if names[0] != "fast.test." || names[50] != "slow2.test." {
		t.Error(names)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}

// many is a socket that asks each of its queries at another server.
type many struct {
	feed
	mu      sync.Mutex
	queries [][]byte
	answers map[string]string // guarded by mu: the server's address → the answer's name
	sent    int               // guarded by mu
	done    chan struct{}     // closed by the last answer
}

func (m *many) ReadFrom(p []byte) (int, net.Addr, error) {
	if m.left++; m.left > len(m.queries) {
		<-m.done
		return 0, nil, net.ErrClosed
	}
	return copy(p, m.queries[m.left-1]), &net.UDPAddr{IP: net.IPv4(192, 0, 2, byte(m.left)), Port: 53}, nil
}

func (m *many) WriteTo(p []byte, server net.Addr) (int, error) {
	r := new(dns.Msg)
	if err := r.Unpack(p); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers[server.String()] = r.Question[0].Name
	if m.sent++; m.sent == len(m.queries) {
		close(m.done)
	}
	return len(p), nil
}

// TestAnswersComeFromWhoWasAsked: also those that come late, of a socket whose
// first queries are quick.
func TestAnswersComeFromWhoWasAsked(t *testing.T) {
	s := newServerT(t, Options{Exchange: func(ctx context.Context, q []byte) ([]byte, error) {
		time.Sleep(20 * time.Millisecond)
		return responder(0, "x.test. 60 IN TXT x")(ctx, q)
	}})
	slowly(s, mustPack(query("quick.test.", dns.TypeA)), false)
	m := &many{answers: map[string]string{}, done: make(chan struct{})}
	want := map[string]string{}
	for i := range 40 {
		q := query(fmt.Sprintf("n%d.test.", i), dns.TypeTXT)
		if i%4 < 2 {
			q = query("quick.test.", dns.TypeA)
		}
		m.queries = append(m.queries, mustPack(q))
		want[fmt.Sprintf("192.0.2.%d:53", i+1)] = q.Question[0].Name
	}
	s.HandlePackets(context.Background(), flow.Flow{}, m)
	if !maps.Equal(m.answers, want) {
		t.Errorf("got %v", m.answers)
	}
}

func TestServeDig(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("SKIPPED: dig is not installed (apt install bind9-dnsutils)")
	}
	host, port, _ := net.SplitHostPort(serveT(t, newServerT(t, Options{})))
	for _, args := range []string{"+notcp A", "+tcp A", "+bufsize=4096 AAAA", "+nocookie +dnssec A"} {
		out, err := exec.Command("dig", append([]string{"@" + host, "-p", port, "+tries=1", "dig.test"}, strings.Fields(args)...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "status: NOERROR") || !strings.Contains(string(out), "ANSWER: 1") || strings.Contains(string(out), "WARNING") {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
}

func TestGarbageOverTCPEndsTheConnection(t *testing.T) {
	addr := serveT(t, newServerT(t, Options{}))
	for _, in := range []string{"\x00\x00", "\x00\x05hello", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, in)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		if b, err := io.ReadAll(conn); len(b) > 0 || isTimeout(err) {
			t.Errorf("%q: %x %v", in, b, err)
		}
		conn.Close()
	}
}
