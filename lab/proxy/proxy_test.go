package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// host is the machine's loopback as a Network.
type host struct{}

func (host) Listen(network, address string) (net.Listener, error) {
	return net.Listen(network, address)
}
func (host) ListenPacket(network, address string) (net.PacketConn, error) {
	return net.ListenPacket(network, address)
}
func (host) DialFrom(ctx context.Context, _ netip.Addr, network, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, address)
}

var _ Network = host{}

func start(t *testing.T, opt Options) *Proxy {
	t.Helper()
	opt.Network, opt.Listen = host{}, netip.MustParseAddrPort("127.0.0.1:0")
	opt.Resolve = func(name string) []netip.Addr {
		if name == "echo.test" {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		return nil
	}
	p, err := Start(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	return p
}

// answerAfterFIN serves one connection: it sends back all it got, after EOF.
func answerAfterFIN(t *testing.T) uint16 {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the connection
		defer ln.Close()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		c.Write(b)
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestConnectWithEarlyDataAndHalfClose(t *testing.T) {
	p := start(t, Options{Scheme: HTTP})
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "CONNECT echo.test:%d HTTP/1.1\r\nHost: x\r\n\r\nearly ", answerAfterFIN(t))
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"})
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	io.WriteString(c, "late")
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(br)
	if string(b) != "early late" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if a, s := p.Counters.Accepted.Load(), p.Counters.Served.Load(); a != 1 || s != 1 {
		t.Errorf("%d accepted, %d served", a, s)
	}
}

func TestEarlyDataIsLost(t *testing.T) {
	const name = "echo.test"
	for scheme, c := range map[Scheme]struct {
		request func(port uint16) string
		want    string
	}{
		HTTP: {func(port uint16) string { return fmt.Sprintf("CONNECT %s:%d HTTP/1.1\r\nHost: x\r\n\r\n", name, port) },
			"HTTP/1.1 200 Connection established\r\n\r\n"},
		SOCKS5: {func(port uint16) string {
			return "\x05\x01\x00\x05\x01\x00\x03" + string(rune(len(name))) + name + string([]byte{byte(port >> 8), byte(port)})
		}, "\x05\x00\x05\x00\x00\x01"},
	} {
		t.Run(string(scheme), func(t *testing.T) {
			p := start(t, Options{Scheme: scheme, DropEarly: true})
			conn, err := net.Dial("tcp", p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(conn, c.request(answerAfterFIN(t))+"early ")
			got := make([]byte, len(c.want))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != c.want {
				t.Fatalf("%q, %v", got, err)
			}
			io.WriteString(conn, "late")
			conn.(*net.TCPConn).CloseWrite()
			if b, err := io.ReadAll(conn); !strings.HasSuffix(string(b), "late") || strings.Contains(string(b), "early") || err != nil {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// TestForwards: what follows a refused CONNECT is a request of its own, unless
// the proxy was told to close the connection.
func TestForwards(t *testing.T) {
	for order, want := range map[string]int64{"": 1, "Connection: close\r\n": 0} {
		t.Run(order, func(t *testing.T) {
			p := start(t, Options{Scheme: HTTP, Forwards: true})
			p.SetFault(Forbid)
			c, err := net.Dial("tcp", p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(c, "CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n"+order+"\r\nGET http://missing.test/ HTTP/1.1\r\nHost: missing.test\r\n\r\n")
			b, err := io.ReadAll(c)
			if !strings.HasPrefix(string(b), "HTTP/1.1 403 ") || err != nil {
				t.Fatalf("%q %v", b, err)
			}
			if got := p.Counters.Forwarded.Load(); got != want {
				t.Errorf("%d requests forwarded", got)
			}
		})
	}
}

func TestSOCKSReplies(t *testing.T) {
	free, _ := net.Listen("tcp", "127.0.0.1:0")
	closed := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()
	p := start(t, Options{Scheme: SOCKS5, User: "u", Password: "p", NoUDP: true})
	auth := "\x05\x01\x02\x01\x01u\x01p"
	name := func(host string) string { return fmt.Sprintf("\x03%c%s\x00\x50", len(host), host) }
	for what, c := range map[string]struct{ send, want string }{
		"no acceptable method": {"\x05\x01\x00", "\x05\xff"},
		"wrong password":       {"\x05\x01\x02\x01\x01u\x01q", "\x05\x02\x01\x01"},
		"unknown name":         {auth + "\x05\x01\x00" + name("nx.test"), "\x05\x02\x01\x00\x05\x04"},
		"refused":              {auth + "\x05\x01\x00" + string(appendAddr(nil, closed)), "\x05\x02\x01\x00\x05\x05"},
		"no UDP":               {auth + "\x05\x03\x00" + string(appendAddr(nil, closed)), "\x05\x02\x01\x00\x05\x07"},
		"address type":         {auth + "\x05\x01\x00\x09", "\x05\x02\x01\x00\x05\x08"},
	} {
		c1, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c1.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c1, c.send)
		got := make([]byte, len(c.want))
		if _, err := io.ReadFull(c1, got); err != nil || string(got) != c.want {
			t.Errorf("%s: %x, %v; want %x", what, got, err, c.want)
		}
		c1.Close()
	}
}

func TestUDPAssociate(t *testing.T) {
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() { // ends with echo
		buf := make([]byte, 2048)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			echo.WriteTo(buf[:n], from)
		}
	}()
	p := start(t, Options{Scheme: SOCKS5})
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
	head := make([]byte, 5)
	io.ReadFull(c, head)
	host, port, err := readAddr(c)
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(5 * time.Second))
	to := echo.LocalAddr().(*net.UDPAddr).AddrPort()
	u.Write(append(appendAddr([]byte{0, 0, 1}, to), "fragment"...)) // dropped
	u.Write(append(appendAddr([]byte{0, 0, 0}, to), "whole"...))
	buf := make([]byte, 2048)
	n, err := u.Read(buf)
	if want := append(appendAddr([]byte{0, 0, 0}, to), "whole"...); err != nil || !bytes.Equal(buf[:n], want) {
		t.Errorf("%q, %v; want %q", buf[:n], err, want)
	}
}

func FuzzReadAddr(f *testing.F) {
	f.Add([]byte("\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x03\x09echo.test\x00\x50"))
	f.Add([]byte("\x04" + "0123456789abcdef" + "\x00\x50"))
	f.Add([]byte("\x03\xffshort"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		host, _, err := readAddr(r)
		if err == nil && (len(host) > 255 || len(b)-r.Len() > 259) {
			t.Errorf("%q from %q", host, b)
		}
	})
}
