package h2

import (
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
