package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// tooLarge is an answer that a server gives before it has read the request. All
// of it fits the first congestion window: a reset does not leave before it.
var tooLarge = append([]byte("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 8000\r\n\r\n"), bytes.Repeat([]byte("x"), 8000)...)

// refuser is a server that answers tooLarge and closes while the client still
// uploads: what that has sent lies unread, so the kernel resets the connection.
func refuser(t *testing.T, l *lab.Lab) (addr string) {
	t.Helper()
	addr = netip.AddrPortFrom(lab.Origin4(), 8413).String()
	serveAt(t, l, lab.Internet, addr, func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 100))
		_, _ = c.Write(tooLarge)
	})
	return addr
}

// answered uploads until that fails, and reports whether the whole answer came.
func answered(c net.Conn) bool {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 64<<10)
	copy(b, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n")
	for range 1024 {
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	got, _ := io.ReadAll(c)
	return bytes.Equal(got, tooLarge)
}

// connectTo opens a tunnel through the local proxy.
func connectTo(ctx context.Context, l *lab.Lab, addr string) (net.Conn, error) {
	c, err := l.Dial(ctx, lab.Client, "tcp", "127.0.0.1:7890")
	if err != nil {
		return nil, err
	}
	return c, connectOn(c, addr)
}

// connectOn asks for a tunnel on a connection to the local proxy.
func connectOn(c net.Conn, addr string) error {
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\n\r\n", addr); err != nil {
		return err
	}
	head := make([]byte, 0, 64)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil {
			return err
		}
		head = append(head, b...)
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("CONNECT: %q", head)
	}
	return nil
}

// deliveries is how many of sixty answers arrive.
func deliveries(t *testing.T, dial func(ctx context.Context) (net.Conn, error)) (n int) {
	t.Helper()
	for range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		c, err := dial(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if answered(c) {
			n++
		}
	}
	return n
}

// A target's whole answer reaches the app although the target takes no more of
// what the app still sends, by every carrier and upstream, as often as without
// us.
func TestAnsweredWhileUploading(t *testing.T) {
	ways := []way{
		{name: "direct", direct: true},
		{name: "connect", own: &lab.ProxyOptions{Scheme: proxy.HTTP}},
		{name: "connect-tls", own: &lab.ProxyOptions{Scheme: proxy.HTTPS, HTTP1Only: true}},
		{name: "h2", own: &lab.ProxyOptions{Scheme: proxy.HTTPS}},
		{name: "early", own: &lab.ProxyOptions{Scheme: proxy.SOCKS5}},
	}
	for _, w := range ways {
		for _, stack := range []string{"kernel", "userspace"} {
			if stack == "userspace" && !w.direct {
				continue // the stack does not know the upstream
			}
			t.Run(w.name+"/"+stack, func(t *testing.T) {
				l := lab.NewTest(t, lab.Options{})
				addr := refuser(t, l)
				upstream, _ := w.upstream(t, l)
				s := start(t, l, labDNS+fmt.Sprintf("[tun]\nstack = %q\n", stack)+upstream, "--up")
				s.await(api.On)
				if w.name == "early" && stack == "kernel" {
					awaitCarrier(t, l, s, api.CarrierRedirect)
				}
				for by, dial := range map[string]func(ctx context.Context) (net.Conn, error){
					"the TUN":         func(ctx context.Context) (net.Conn, error) { return l.Dial(ctx, lab.Client, "tcp", addr) },
					"the local proxy": func(ctx context.Context) (net.Conn, error) { return connectTo(ctx, l, addr) },
				} {
					if n := deliveries(t, dial); n != 60 {
						t.Errorf("%d of 60 answers came by %s (carrier %s)", n, by, s.status().TUN.Carrier)
					}
				}
			})
		}
	}
}
