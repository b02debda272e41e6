package listener

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// bench is a listener in front of an origin that costs as little as can be.
type bench struct{ proxy, origin string }

// dialer is a flow.Handler that dials one address, whatever the target.
type dialer struct{ address string }

func (d dialer) HandleStream(ctx context.Context, _ flow.Flow, p flow.Pending) {
	up, err := net.Dial("tcp", d.address)
	if err != nil {
		p.Reject(flow.Refused)
		return
	}
	defer up.Close()
	app, err := p.Accept()
	if err != nil {
		return
	}
	defer app.Close()
	defer context.AfterFunc(ctx, func() { app.Close(); up.Close() })()
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(up, app)
		up.(*net.TCPConn).CloseWrite()
	})
	io.Copy(app, up)
	app.CloseWrite()
	wg.Wait()
}

func (dialer) HandlePackets(context.Context, flow.Flow, net.PacketConn) {}

const benchBody = 512

// newBench starts an origin that answers each head with the same response of
// size bytes.
func newBench(b *testing.B, size int) bench {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	answer := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nCache-Control: no-cache\r\nETag: \"x\"\r\n\r\n%s", size, strings.Repeat("x", size)))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) == 2 {
						if _, err := c.Write(answer); err != nil {
							return
						}
					}
				}
			})
		}
	})
	p, err := Listen(Options{Address: "127.0.0.1:0", Handler: dialer{l.Addr().String()}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { p.Run(ctx) })
	b.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	return bench{p.Addr().String(), l.Addr().String()}
}

// browse sends requests such as a browser's by one connection while next says
// so, each for size bytes.
func (e bench) browse(b *testing.B, address, target string, size int, next func() bool) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		b.Error(err)
		return
	}
	defer c.Close()
	r := bufio.NewReader(c)
	request := []byte("GET " + target + " HTTP/1.1\r\nHost: origin.test\r\nProxy-Connection: keep-alive\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
		"Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\nCookie: session=0123456789abcdef\r\n\r\n")
	for next() {
		if _, err := c.Write(request); err != nil {
			b.Error(err)
			return
		}
		for length := 0; length != 2; { // the head ends with an empty line
			line, err := r.ReadSlice('\n')
			if err != nil {
				b.Error(err)
				return
			}
			length = len(line)
		}
		if _, err := r.Discard(size); err != nil {
			b.Error(err)
			return
		}
	}
}

// BenchmarkPlainHTTP is one request and its response by connections kept alive:
// through the proxy, and straight to the origin for comparison.
func BenchmarkPlainHTTP(b *testing.B) {
	for _, by := range []string{"proxy", "straight"} {
		for _, conns := range []int{1, 32} {
			b.Run(fmt.Sprintf("by=%s/conns=%d", by, conns), func(b *testing.B) {
				e := newBench(b, benchBody)
				address, target := e.proxy, "http://origin.test/path?query"
				if by == "straight" {
					address, target = e.origin, "/path?query"
				}
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range conns {
					wg.Go(func() {
						left := (b.N + conns - 1 - i) / conns
						e.browse(b, address, target, benchBody, func() bool { left--; return left >= 0 })
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
			})
		}
	}
}

// BenchmarkPlainHTTPDownload is one response of 16 MiB.
func BenchmarkPlainHTTPDownload(b *testing.B) {
	const size = 16 << 20
	e := newBench(b, size)
	b.SetBytes(size)
	left := b.N
	b.ResetTimer()
	e.browse(b, e.proxy, "http://origin.test/", size, func() bool { left--; return left >= 0 })
}

// BenchmarkConnect is a CONNECT to the target's first byte and the end, with
// 16 apps at a time.
func BenchmarkConnect(b *testing.B) {
	e := newBench(b, benchBody)
	request := []byte("CONNECT origin.test:443 HTTP/1.1\r\nHost: origin.test:443\r\nUser-Agent: bench\r\nProxy-Connection: keep-alive\r\n\r\n")
	const workers = 16
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for range (b.N + workers - 1 - i) / workers {
				if err := e.connect(request); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
}

func (e bench) connect(request []byte) error {
	c, err := net.Dial("tcp", e.proxy)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(request); err != nil {
		return err
	}
	r := bufio.NewReaderSize(c, 1024)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err
	}
	if resp.StatusCode != 200 {
		return fmt.Errorf("%s", resp.Status)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = r.Peek(1)
	return err
}
