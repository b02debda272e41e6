package upstream

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Bytes that leave ahead of the answer to a CONNECT that the proxy refuses are
// not a request of their own (RFC 9931). In these tests a proxy refuses every
// CONNECT to refusedPort and fetches from the secret server for whoever asks.
const refusedPort = 81

// secretServer counts the connections that a proxy makes to it.
func secretServer(t *testing.T) (addr string, reached *atomic.Int32) {
	reached = new(atomic.Int32)
	return serve(t, func(c *net.TCPConn) {
		reached.Add(1)
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret")
	}).String(), reached
}

// refusing are proxies of the distribution, and whether each is one that
// executes what follows a refused CONNECT if it may.
func refusing(t *testing.T) map[string]func(*testing.T) (rawURL string, change func(*Spec), executes bool) {
	never := false
	http1 := func(change func(*Spec)) func(*Spec) {
		return func(s *Spec) { change(s); s.HTTP2 = &never }
	}
	return map[string]func(*testing.T) (string, func(*Spec), bool){
		"squid": func(t *testing.T) (string, func(*Spec), bool) {
			return squid(t, fmt.Sprintf("acl refused port %d\nhttp_access deny CONNECT refused\n", refusedPort)), nil, true
		},
		"apache": func(t *testing.T) (string, func(*Spec), bool) {
			rawURL, _ := apache(t, false, "443")
			return rawURL, nil, true
		},
		"apache in TLS": func(t *testing.T) (string, func(*Spec), bool) {
			rawURL, change := apache(t, true, "443")
			return rawURL, http1(change), true
		},
		"tinyproxy": func(t *testing.T) (string, func(*Spec), bool) {
			return tinyproxy(t, "ConnectPort 443\n"), nil, false
		},
		"haproxy": func(t *testing.T) (string, func(*Spec), bool) {
			return haproxy(t, tinyproxy(t, ""), fmt.Sprintf("http-request deny if METH_CONNECT { req.hdr(host) -m end :%d }", refusedPort)), nil, true
		},
		"nghttpx": func(t *testing.T) (string, func(*Spec), bool) {
			behind := squid(t, fmt.Sprintf("acl refused port %d\nhttp_access deny CONNECT refused\n", refusedPort))
			return nghttpx(t, behind), nil, false
		},
		"nghttpx in TLS": func(t *testing.T) (string, func(*Spec), bool) {
			behind := squid(t, fmt.Sprintf("acl refused port %d\nhttp_access deny CONNECT refused\n", refusedPort))
			rawURL, change := nghttpxTLS(t, behind)
			return rawURL, http1(change), false
		},
	}
}

func TestRealRefusedConnect(t *testing.T) {
	for name, start := range refusing(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rawURL, change, executes := start(t)
			secret, reached := secretServer(t)
			u := open(t, rawURL, change, Options{})
			smuggled := "GET http://" + secret + "/ HTTP/1.1\r\nHost: " + secret + "\r\n\r\n"
			target := flow.Target{Addr: flow.AddrPortOf(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}).Addr(), Port: refusedPort}

			// The proxy is one that this could happen to.
			rawRefused(t, &u.spec, target, smuggled)
			if got := reachedBy(reached, 1, executes); (got > 0) != executes {
				t.Fatalf("without Connection: close the secret was reached %d times", got)
			}
			reached.Store(0)
			u.SetEarly(EarlyCarries)
			for range 20 {
				var tr Trace
				_, err := u.DialStream(WithTrace(within(t, 10*time.Second), &tr), target, []byte(smuggled))
				var e *Error
				if !errors.As(err, &e) || e.Status < 400 || !tr.Early {
					t.Fatalf("not a refused CONNECT with early data: %v, %+v", err, tr)
				}
			}
			// What the proxy had to say about the next request would be there by now.
			if got := reachedBy(reached, 1, false); got != 0 {
				t.Errorf("the secret was reached %d times", got)
			}
			// On a CONNECT that it accepts it carries early data as before.
			if name == "apache" || name == "apache in TLS" || name == "tinyproxy" {
				return // they admit CONNECT to port 443 alone here; see TestRealVerdicts
			}
			if tr := getFrom(t, u, flow.TargetOf(serve(t, answerA))); !tr.Early {
				t.Errorf("an accepted CONNECT: %+v", tr)
			}
		})
	}
}

// reachedBy waits until n is at least want, for long if it is expected.
func reachedBy(n *atomic.Int32, want int32, expected bool) int32 {
	limit := 300 * time.Millisecond
	if expected {
		limit = 5 * time.Second
	}
	for end := time.Now().Add(limit); n.Load() < want && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	return n.Load()
}

// rawRefused sends a CONNECT without "Connection: close", and what is not to
// be a request behind it.
func rawRefused(t *testing.T, s *Spec, target flow.Target, behind string) {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if s.Scheme == proxy.HTTPS {
		c = tls.Client(c, &tls.Config{RootCAs: s.CA, ServerName: s.Host})
	}
	if _, err := c.Write(append(appendConnect(nil, &ask{spec: s, t: target}), behind...)); err != nil {
		t.Fatal(err)
	}
}

// TestRealRefusedHostilePayloads (RQ-01): nothing that an app can say first
// becomes a request, at a real squid.
func TestRealRefusedHostilePayloads(t *testing.T) {
	rawURL := squid(t, fmt.Sprintf("acl refused port %d\nhttp_access deny CONNECT refused\n", refusedPort))
	secret, reached := secretServer(t)
	u := open(t, rawURL, nil, Options{})
	u.SetEarly(EarlyCarries)
	target := flow.Target{Name: "127.0.0.1", Port: refusedPort}
	hostileDials(t, u, target, secret, 2000)
	if got := reachedBy(reached, 1, false); got != 0 {
		t.Errorf("the secret was reached %d times", got)
	}
}

// hostileDials opens tunnels with n hostile first payloads, eight at a time,
// and counts those that left early: what is tested is them.
func hostileDials(t *testing.T, u *Upstream, target flow.Target, secret string, n int) {
	t.Helper()
	var early atomic.Int32
	var wg sync.WaitGroup
	for w := range 8 {
		rnd := rand.New(rand.NewPCG(uint64(w), 9931))
		wg.Go(func() {
			for range n / 8 {
				var tr Trace
				payload := hostilePayload(rnd, secret)
				if _, err := u.DialStream(WithTrace(within(t, 10*time.Second), &tr), target, payload); err == nil {
					t.Errorf("%q: the CONNECT was not refused", payload)
				}
				if tr.Early {
					early.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := int(early.Load()); got < n/4 {
		t.Errorf("%d of %d payloads left early: not what was to be tested", got, n)
	}
}

// hostilePayload is what an app may write first to have a proxy that refuses
// its CONNECT take it for a request to the secret server.
func hostilePayload(rnd *rand.Rand, secret string) []byte {
	pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
	eol := pick("\r\n", "\r\n", "\n")
	var b strings.Builder
	b.WriteString(pick("", "", "", "", "", "", "", "\r\n", "\n", " ", "0\r\n\r\n", "AAA"))
	b.WriteString(pick("GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "get", "TRACE") + pick(" ", " ", " ", " ", "  ", "\t"))
	b.WriteString(pick("http://"+secret, "http://"+secret, "HTTP://"+secret, "", "//"+secret) + pick("/", "/", "/secret", "/?"+strings.Repeat("q", rnd.IntN(1500))))
	b.WriteString(pick(" HTTP/1.1", " HTTP/1.1", " HTTP/1.0", " HTTP/2.0", "") + eol)
	for range rnd.IntN(4) {
		b.WriteString(pick("Host: "+secret, "Host: "+secret, "Connection: keep-alive", "Proxy-Connection: keep-alive", "Upgrade: x",
			"Content-Length: 0", "Transfer-Encoding: chunked", " folded", "X: "+strings.Repeat("y", rnd.IntN(3000))) + eol)
	}
	b.WriteString(pick(eol, eol, eol, eol, eol, ""))
	if rnd.IntN(6) > 0 {
		return []byte(b.String())
	}
	// The same inside what looks like a TLS greeting.
	n := b.Len() + 4
	head := []byte{tlsHandshake, 3, 1, byte(n >> 8), byte(n), tlsClientHello, 0, '\r', '\n'}
	return append(head, b.String()...)
}

// TestRefusedHostilePayloads (RQ-01) is the same, ten thousand times, at a proxy
// that keeps a refused connection for as long as it is not told to close it.
func TestRefusedHostilePayloads(t *testing.T) {
	var requests atomic.Int32
	u := open(t, "http://"+serve(t, func(c *net.TCPConn) { refuseAndKeep(c, &requests) }).String(), nil, Options{})
	u.SetEarly(EarlyCarries)
	hostileDials(t, u, flow.Target{Name: "127.0.0.1", Port: refusedPort}, "127.0.0.1:82", 10_000)
	if n := requests.Load(); n != 0 {
		t.Errorf("%d payloads became requests", n)
	}
	// It is one that this could happen to.
	rawRefused(t, &u.spec, flow.Target{Name: "127.0.0.1", Port: refusedPort}, getHead)
	if reachedBy(&requests, 1, true) != 1 {
		t.Error("the proxy would not have taken the bytes for a request")
	}
}

// refuseAndKeep answers each CONNECT with 403 and takes what follows for the
// next request, unless it was told to close. Requests are all but CONNECTs.
func refuseAndKeep(c *net.TCPConn, requests *atomic.Int32) {
	var in []byte
	b := make([]byte, 16<<10)
	for {
		for {
			end := headEnd(in, 0)
			if end < 0 {
				break
			}
			head := in[:end]
			in = in[end:]
			if len(bytes.TrimSpace(head)) == 0 {
				continue
			}
			if !bytes.HasPrefix(head, []byte("CONNECT ")) {
				requests.Add(1)
			}
			closing := bytes.Contains(head, []byte("\r\nConnection: close\r\n"))
			if _, err := io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"); err != nil || closing {
				return
			}
		}
		n, err := c.Read(b)
		if err != nil {
			return
		}
		in = append(in, b[:n]...)
	}
}

// TestRefusedConnectionIsNotReused: a connection on which a CONNECT with early
// bytes was refused is closed, in plain text and in TLS; it never serves
// another flow, and neither does one that was refused without them.
func TestRefusedConnectionIsNotReused(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	never := false
	for name, over := range map[string]bool{"plain": false, "TLS": true} {
		for order, verdict := range map[string]Verdict{"early": EarlyCarries, "plain order": EarlyRefuses} {
			t.Run(name+" "+order, func(t *testing.T) {
				var most atomic.Int32 // CONNECTs on one connection
				var conns, ended atomic.Int32
				handle := func(c net.Conn) {
					conns.Add(1)
					defer ended.Add(1)
					b := make([]byte, 8192)
					for n := int32(1); ; n++ {
						k, err := c.Read(b)
						if err != nil {
							return
						}
						most.Store(max(most.Load(), int32(bytes.Count(b[:k], []byte("CONNECT "))), n))
						_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
					}
				}
				rawURL, change := "http://"+serve(t, func(c *net.TCPConn) { handle(c) }).String(), func(*Spec) {}
				if over {
					rawURL = "https://" + serve(t, overTLS(cert, handle, alpnHTTP1)).String()
					change = func(s *Spec) { s.CA, s.HTTP2 = pool, &never }
				}
				u := open(t, rawURL, change, Options{})
				u.SetEarly(verdict)
				for range 12 {
					if _, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "a.example", Port: 80}, []byte(getHead)); err == nil {
						t.Fatal("not refused")
					}
				}
				if got := most.Load(); got != 1 {
					t.Errorf("%d requests on one connection", got)
				}
				if reachedBy(&ended, 12, true) < 12 {
					t.Errorf("%d of 12 refused connections were closed", ended.Load())
				}
			})
		}
	}
}

// answerA answers a GET as webServer does.
func answerA(c *net.TCPConn) {
	_, _ = c.Read(make([]byte, 4096))
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na.exa")
	_, _ = io.Copy(io.Discard, c)
}
