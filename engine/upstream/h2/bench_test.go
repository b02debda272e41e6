package h2

import (
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// obliging answers every CONNECT and ends what we end, without allocating.
func obliging(p *peer) {
	p.SetReuseFrames()
	p.ReadMetaHeaders = nil
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: f.StreamID, BlockFragment: []byte{0x88}, EndHeaders: true})
		case *http2.DataFrame:
			if f.StreamEnded() {
				p.WriteData(f.StreamID, true, nil)
			} else {
				p.WriteWindowUpdate(0, f.Length)
			}
		}
	}
}

// BenchmarkConnect is one tunnel from request to end, first bytes with it.
func BenchmarkConnect(b *testing.B) {
	s, p := session(b)
	p.c.SetDeadline(time.Time{})
	go obliging(p)
	early := make([]byte, 517)
	auth := hpack.HeaderField{Name: "proxy-authorization", Value: "Basic dXNlcjpwYXNz", Sensitive: true}
	one := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		s.Reserve()
		st, _, err := s.Connect(b.Context(), "www.example.com:443", early, auth)
		if err != nil {
			b.Fatal(err)
		}
		st.CloseWrite()
		st.Read(one)
		st.Close()
	}
}

// TestNothingAllocated: bytes move both ways without garbage.
func TestNothingAllocated(t *testing.T) {
	if underRace {
		t.Skip("SKIPPED: the race detector allocates")
	}
	s, p := session(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	st, id := opened(t, s, p)
	p.SetReuseFrames()
	out, in := make([]byte, 32<<10), make([]byte, maxFrameBytes)
	heard := make(chan int, 100)
	go func() {
		defer close(heard)
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			if d, ok := f.(*http2.DataFrame); ok {
				heard <- len(d.Data())
			}
		}
	}()
	up := func() {
		if _, err := st.Write(out); err != nil {
			t.Fatal(err)
		}
		for left := len(out); left > 0; {
			left -= <-heard
		}
		p.WriteWindowUpdate(0, uint32(len(out)))
	}
	down := func() {
		p.WriteData(id, false, in)
		if _, err := io.ReadFull(st, in); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 { // buffers grow, windows too
		up()
		down()
	}
	if n := testing.AllocsPerRun(200, up); n > 0 {
		t.Errorf("%v allocations to send 32 KiB", n)
	}
	if n := testing.AllocsPerRun(200, down); n > 0 {
		t.Errorf("%v allocations to receive 16 KiB", n)
	}
}
