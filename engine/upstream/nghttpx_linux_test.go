package upstream

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestRealNghttpxMany: a thousand fetches at once from one host, of which
// nghttpx serves eight in a session at a time and lets the others wait. None
// fails, with early data or without, and the session's other streams go on.
func TestRealNghttpxMany(t *testing.T) {
	const body = 20_000
	target := flow.TargetOf(serve(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n"+strings.Repeat("x", body))
		}
	}))
	held := flow.TargetOf(serve(t, echo))
	rawURL, change := nghttpxTLS(t, tinyproxy(t, "MaxClients 1500\n"))
	for _, v := range []Verdict{EarlyRefuses, EarlyCarries} {
		t.Run(v.String(), func(t *testing.T) {
			u := open(t, rawURL, change, Options{})
			u.SetEarly(v)
			shell, err := u.DialStream(within(t, 10*time.Second), held, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer shell.Close()
			var wg sync.WaitGroup
			for range 1000 {
				wg.Go(func() {
					c, err := u.DialStream(within(t, 40*time.Second), target, []byte(getHead))
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					_ = c.SetReadDeadline(time.Now().Add(40 * time.Second))
					r, err := http.ReadResponse(bufio.NewReader(c), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if n, err := io.Copy(io.Discard, r.Body); n != body || err != nil {
						t.Errorf("%d bytes of %d: %v", n, body, err)
					}
				})
			}
			wg.Wait()
			_ = shell.SetDeadline(time.Now().Add(10 * time.Second))
			exchange(t, shell)
			t.Logf("%d sessions", u.Stats().Sessions)
		})
	}
}

// TestRealNghttpxShell: a shell through nghttpx, whose server writes a key's echo
// in two pieces, is as quick over HTTP/2 as over HTTP/1.1 in TLS. Squid is behind
// it: tinyproxy does not set TCP_NODELAY and nghttpx delays its ACKs, so that
// with it one exchange in ten takes 40 ms, whoever the client is (27 November
// 2026: ours 10 of 100, golang.org/x/net/http2's Transport 11).
func TestRealNghttpxShell(t *testing.T) {
	rawURL, change := nghttpxTLS(t, squid(t, ""))
	shell := flow.TargetOf(serve(t, func(c *net.TCPConn) {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			_, _ = c.Write(b[:n/2])
			_, _ = c.Write(b[n/2 : n])
		}
	}))
	never := false
	var took [2]time.Duration
	var conns [2]flow.StreamConn
	for i, h2 := range []*bool{nil, &never} {
		u := open(t, rawURL, func(s *Spec) { change(s); s.HTTP2 = h2 }, Options{})
		c, err := u.DialStream(within(t, 10*time.Second), shell, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		conns[i] = c
	}
	for range 200 { // in turns, so that other load meets both
		for i, c := range conns {
			took[i] += exchange(t, c)
		}
	}
	if t.Logf("HTTP/2 %v, HTTP/1.1 %v", took[0], took[1]); took[0] > 3*took[1]+time.Second {
		t.Errorf("HTTP/2 took %v, HTTP/1.1 %v", took[0], took[1])
	}
}

// exchange sends a key and expects it back.
func exchange(t *testing.T, c io.ReadWriter) (took time.Duration) {
	t.Helper()
	begin, b := time.Now(), make([]byte, 36)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}
