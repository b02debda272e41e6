package route

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// BenchmarkFlow carries flows straight to a target that answers and hangs up:
// sockets included, what one costs.
func BenchmarkFlow(b *testing.B) {
	target := flow.TargetOf(serve(b, func(c *net.TCPConn) {
		var p [64]byte
		_, _ = c.Read(p[:])
		_, _ = c.Write(p[:1])
	}))
	h := handler(b, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f := tcpFlow(target)
			go h.HandleStream(context.Background(), f, &pending{conn: c.(*net.TCPConn)})
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		_, _ = c.Write([]byte("x"))
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}
}

func BenchmarkDecide(b *testing.B) {
	h := handler(b, nil)
	f := tcpFlow(flow.Target{Name: "www.example.com", Port: 443})
	b.ReportAllocs()
	for b.Loop() {
		h.decide(f, f.Target)
	}
}

func BenchmarkPhases(b *testing.B) {
	var p phases
	tr := upstream.Trace{Pick: 1, Wait: 1, Dial: time.Millisecond, Connect: time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		p.note(time.Microsecond, &tr)
	}
}
