package dns

import (
	"context"
	"io"
	"net"
	"os/exec"
	"strings"
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

// serveT serves s on loopback sockets until the test ends.
func serveT(t *testing.T, s *Server) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
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
