package upstream

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// endless sends until it is cut off; sink takes as much.
func endless(c *net.TCPConn) {
	b := make([]byte, 256<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func sink(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

// benchmarkDownload moves b.N pieces of 1 MiB through streams tunnels at once.
func benchmarkDownload(b *testing.B, u *Upstream, streams int) {
	target := flow.TargetOf(serve(b, endless))
	conns := make([]flow.StreamConn, streams)
	for i := range conns {
		c, err := u.DialStream(within(b, 5*time.Second), target, nil)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	b.SetBytes(1 << 20)
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			if _, err := io.CopyN(onlyWriter{io.Discard}, c, int64(b.N)<<20/int64(streams)); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

// delayed is a way to addr on which every byte takes oneWay.
func delayed(t testing.TB, addr string, oneWay time.Duration) string {
	t.Helper()
	type piece struct {
		b   []byte
		due time.Time
	}
	carry := func(to, from *net.TCPConn) {
		way := make(chan piece, 4096)
		go func() {
			defer close(way)
			for {
				b := make([]byte, 64<<10)
				n, err := from.Read(b)
				if err != nil {
					return
				}
				way <- piece{b[:n], time.Now().Add(oneWay)}
			}
		}()
		for p := range way {
			time.Sleep(time.Until(p.due))
			_, _ = to.Write(p.b)
		}
		_ = to.CloseWrite()
	}
	return serve(t, func(c *net.TCPConn) {
		far, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		defer far.Close()
		back := make(chan struct{})
		go func() { defer close(back); carry(c, far.(*net.TCPConn)) }()
		carry(far.(*net.TCPConn), c)
		<-back
	}).String()
}

// BenchmarkH2FirstByte is the first byte of the answer to a fresh flow's first
// bytes, in round trips of a path of 20 ms.
func BenchmarkH2FirstByte(b *testing.B) {
	const rtt = 20 * time.Millisecond
	for _, v := range []Verdict{EarlyRefuses, EarlyCarries} {
		b.Run(v.String(), func(b *testing.B) {
			p := &h2Peer{}
			u := p.start(b)
			u = open(b, "https://"+delayed(b, u.Spec().Addr(), rtt/2), func(s *Spec) { s.CA = u.Spec().CA }, Options{})
			u.SetEarly(v)
			hello := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if c := talkThrough(b, u, string(hello)); c != nil { // the session is there now
				c.Close()
			}
			b.ResetTimer()
			for range b.N {
				c, err := u.DialStream(b.Context(), flow.Target{Name: "x.example", Port: 80}, hello)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(rtt), "RTT/op")
		})
	}
}

// onlyWriter hides what else w can do.
type onlyWriter struct{ io.Writer }

// benchmarkUpload is benchmarkDownload the other way.
func benchmarkUpload(b *testing.B, u *Upstream, streams int) {
	target := flow.TargetOf(serve(b, sink))
	conns := make([]flow.StreamConn, streams)
	for i := range conns {
		c, err := u.DialStream(within(b, 5*time.Second), target, nil)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	piece := make([]byte, 32<<10) // what route writes at most
	b.SetBytes(1 << 20)
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			for range (int64(b.N) << 20) / int64(len(piece)) / int64(streams) {
				if _, err := c.Write(piece); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func benchmarkThroughput(b *testing.B, rawURL string, change func(*Spec)) {
	for name, run := range map[string]func(*testing.B, *Upstream, int){"down": benchmarkDownload, "up": benchmarkUpload} {
		for _, streams := range []int{1, 8} {
			b.Run(name+string('0'+rune(streams)), func(b *testing.B) {
				run(b, open(b, rawURL, change, Options{}), streams)
			})
		}
	}
}

func BenchmarkH2(b *testing.B) {
	addr, change, _ := h2Proxy(b, "", 0)
	benchmarkThroughput(b, "https://"+addr, change)
}

// BenchmarkH2Far is BenchmarkH2 on a path of 20 ms, where windows count.
func BenchmarkH2Far(b *testing.B) {
	addr, change, _ := h2Proxy(b, "", 0)
	benchmarkThroughput(b, "https://"+delayed(b, addr, 10*time.Millisecond), change)
}

// BenchmarkH2Connect is a whole tunnel: open, an echo, close.
func BenchmarkH2Connect(b *testing.B) {
	addr, change, _ := h2Proxy(b, "", 0)
	u := open(b, "https://"+addr, change, Options{})
	target := flow.TargetOf(serve(b, echo))
	b.ReportAllocs()
	for b.Loop() {
		c, err := u.DialStream(b.Context(), target, []byte("x"))
		if err != nil {
			b.Fatal(err)
		}
		var one [1]byte
		if _, err := io.ReadFull(c, one[:]); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
