package dns

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// benchQueries are packed queries for n names, all asked before.
func benchQueries(b *testing.B, s *Server, n int, qtype uint16) [][]byte {
	b.Helper()
	out := make([][]byte, n)
	for i := range out {
		q := query(fmt.Sprintf("www%d.shop.example.com.", i*7919%n), qtype)
		q.SetEdns0(1232, false)
		out[i] = mustPack(q)
		slowly(s, out[i], false)
	}
	return out
}

// BenchmarkAnswer is one packed query in, one packed answer out, of names asked
// before: fake addresses, and three records from the cache, in both modes; slow
// is the same through miekg/dns.
func BenchmarkAnswer(b *testing.B) {
	kinds := []struct {
		name  string
		opt   Options
		qtype uint16
		max   int // names that fit
	}{
		{"fake", Options{Exchange: anyZone}, dns.TypeA, maxNames},
		{"cached", Options{Exchange: anyZone}, dns.TypeNS, 10_000},
		{"cachedReal", Options{Mode: Real, Exchange: anyZone}, dns.TypeA, 10_000},
	}
	for _, k := range kinds {
		for _, names := range []int{10, 1000, 10_000, 100_000} {
			if names > k.max {
				continue
			}
			s := newServerT(b, k.opt)
			queries := benchQueries(b, s, names, k.qtype)
			b.Run(fmt.Sprintf("kind=%s/names=%d", k.name, names), func(b *testing.B) {
				out := make([]byte, 0, 4096)
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.AppendAnswer(b.Context(), out, queries[i], false); err != nil {
						b.Fatal(err)
					}
					if i++; i == len(queries) {
						i = 0
					}
				}
			})
		}
		s := newServerT(b, k.opt)
		queries := benchQueries(b, s, 1000, k.qtype)
		b.Run(fmt.Sprintf("kind=%s/parallel", k.name), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				out := make([]byte, 0, 4096)
				for i := 0; pb.Next(); i++ {
					if _, err := s.AppendAnswer(b.Context(), out, queries[i%len(queries)], false); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
		b.Run(fmt.Sprintf("kind=%s/slow", k.name), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				slowly(s, queries[0], false)
			}
		})
	}
}

// feed is a socket that gives one query n times and takes the answers.
type feed struct {
	query []byte
	from  net.Addr
	left  int
}

func (f *feed) ReadFrom(p []byte) (int, net.Addr, error) {
	if f.left--; f.left < 0 {
		return 0, nil, io.EOF
	}
	return copy(p, f.query), f.from, nil
}
func (f *feed) WriteTo(p []byte, _ net.Addr) (int, error) { return len(p), nil }
func (f *feed) Close() error                              { return nil }
func (f *feed) LocalAddr() net.Addr                       { return f.from }
func (f *feed) SetDeadline(time.Time) error               { return nil }
func (f *feed) SetReadDeadline(time.Time) error           { return nil }
func (f *feed) SetWriteDeadline(time.Time) error          { return nil }

// BenchmarkHandlePackets is one query of a socket that asks many, and a socket
// that asks once.
func BenchmarkHandlePackets(b *testing.B) {
	s := newServerT(b, Options{})
	q := benchQueries(b, s, 1, dns.TypeA)[0]
	b.Run("query", func(b *testing.B) {
		b.ReportAllocs()
		s.HandlePackets(context.Background(), flow.Flow{}, &feed{query: q, from: &net.UDPAddr{}, left: b.N})
	})
	b.Run("socket", func(b *testing.B) {
		b.ReportAllocs()
		f := &feed{query: q, from: &net.UDPAddr{}}
		for b.Loop() {
			f.left = 1
			s.HandlePackets(context.Background(), flow.Flow{}, f)
		}
	})
}

// TestHandlePacketsDoesNotAllocate: a query that was asked before costs its
// socket nothing.
func TestHandlePacketsDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: the race detector allocates")
	}
	s := newServerT(t, Options{})
	q := mustPack(query("a.test.", dns.TypeA))
	slowly(s, q, false)
	serve := func(n int) float64 {
		return testing.AllocsPerRun(20, func() {
			s.HandlePackets(context.Background(), flow.Flow{}, &feed{query: q, from: &net.UDPAddr{}, left: n})
		})
	}
	if one, many := serve(1), serve(1001); many-one > 10 { // the pool may lose a buffer to the collector
		t.Errorf("%v allocations for a thousand queries more", many-one)
	}
}
