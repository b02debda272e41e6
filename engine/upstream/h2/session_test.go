package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is the proxy's end, frame by frame.
type peer struct {
	t testing.TB
	c net.Conn
	*http2.Framer
}

// session makes a session and a peer that has exchanged prefaces with it.
func session(t testing.TB, settings ...http2.Setting) (*Session, *peer) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := New(c)
	t.Cleanup(func() { s.Close(); far.Close() })
	b := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(far, b); err != nil || string(b) != http2.ClientPreface {
		t.Fatalf("preface %q %v", b, err)
	}
	p := &peer{t, far, http2.NewFramer(far, far)}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	far.SetDeadline(time.Now().Add(8 * time.Second))
	p.WriteSettings(settings...)
	<-s.Ready()
	return s, p
}

// next skips frames until one of type T.
func next[T http2.Frame](p *peer) T {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		if err != nil {
			p.t.Errorf("peer reads: %v", err)
			var none T
			return none
		}
		if got, ok := f.(T); ok {
			return got
		}
	}
}

// answer sends HEADERS.
func (p *peer) answer(id uint32, status string, end bool, more ...hpack.HeaderField) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	e.WriteField(hpack.HeaderField{Name: ":status", Value: status})
	for _, f := range more {
		e.WriteField(f)
	}
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: end})
}

type result struct {
	st  *Stream
	r   Response
	err error
}

func connect(s *Session) chan result {
	c := make(chan result, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	if !s.Reserve() {
		c <- result{err: errors.New("no place")}
	}
	go func() {
		defer cancel()
		st, r, err := s.Connect(ctx, "x.example:443", nil, hpack.HeaderField{Name: "proxy-authorization", Value: "Basic x", Sensitive: true})
		c <- result{st, r, err}
	}()
	return c
}

func opened(t testing.TB, s *Session, p *peer) (*Stream, uint32) {
	t.Helper()
	c := connect(s)
	h := next[*http2.MetaHeadersFrame](p)
	if h.PseudoValue("method") != "CONNECT" || h.PseudoValue("authority") != "x.example:443" || h.PseudoValue("scheme")+h.PseudoValue("path") != "" || h.StreamEnded() {
		t.Fatalf("request %v", h.Fields)
	}
	p.answer(h.StreamID, "200", false)
	r := <-c
	if r.err != nil || r.st == nil {
		t.Fatal(r.err)
	}
	return r.st, h.StreamID
}

func TestHalfCloseBothOrders(t *testing.T) {
	s, p := session(t)
	st, id := opened(t, s, p)
	p.WriteData(id, true, []byte("bye")) // the peer first
	if b, err := io.ReadAll(st); string(b) != "bye" || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	st.Write([]byte("still here"))
	if d := next[*http2.DataFrame](p); string(d.Data()) != "still here" || d.StreamEnded() {
		t.Fatalf("%q", d.Data())
	}
	st.CloseWrite()
	if d := next[*http2.DataFrame](p); !d.StreamEnded() {
		t.Fatal("no END_STREAM")
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("write after FIN: %v", err)
	}
	if s.Idle() == 0 {
		t.Error("a finished stream keeps its place")
	}
	st.Close()

	st, id = opened(t, s, p)
	st.CloseWrite() // we first
	next[*http2.DataFrame](p)
	p.WriteData(id, false, []byte("a"))
	p.WriteData(id, true, []byte("b"))
	var b bytes.Buffer
	if n, err := st.WriteTo(&b); n != 2 || b.String() != "ab" || err != nil {
		t.Fatalf("%q %v", b.String(), err)
	}
}

func TestResetMapping(t *testing.T) {
	s, p := session(t)
	st, id := opened(t, s, p)
	p.WriteData(id, false, []byte("last"))
	p.WriteRSTStream(id, http2.ErrCodeConnect)
	b, err := io.ReadAll(st)
	if string(b) != "last" || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%q %v", b, err)
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("write: %v", err)
	}
	for _, c := range []struct {
		linger int
		want   http2.ErrCode
	}{{0, http2.ErrCodeConnect}, {-1, http2.ErrCodeCancel}} {
		st, _ := opened(t, s, p)
		st.SetLinger(c.linger)
		st.Close()
		if f := next[*http2.RSTStreamFrame](p); f.ErrCode != c.want {
			t.Errorf("reset with %v, want %v", f.ErrCode, c.want)
		}
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: %v", err)
		}
	}
}

func TestUnprocessed(t *testing.T) {
	s, p := session(t)
	c := connect(s)
	p.WriteRSTStream(next[*http2.MetaHeadersFrame](p).StreamID, http2.ErrCodeRefusedStream)
	if r := <-c; !errors.Is(r.err, ErrUnprocessed) {
		t.Errorf("REFUSED_STREAM: %v", r.err)
	}
	st, id := opened(t, s, p)
	c = connect(s)
	next[*http2.MetaHeadersFrame](p)
	p.WriteGoAway(id, http2.ErrCodeNo, nil)
	if r := <-c; !errors.Is(r.err, ErrUnprocessed) {
		t.Errorf("GOAWAY: %v", r.err)
	}
	if s.Reserve() || s.Usable() {
		t.Error("a draining session takes streams")
	}
	p.WriteData(id, true, []byte("runs on"))
	if b, err := io.ReadAll(st); string(b) != "runs on" || err != nil {
		t.Errorf("older stream: %q %v", b, err)
	}
	s2, p2 := session(t)
	c = connect(s2)
	next[*http2.MetaHeadersFrame](p2)
	p2.c.Close()
	if r := <-c; !errors.Is(r.err, ErrUnprocessed) {
		t.Errorf("connection lost: %v", r.err)
	}
}

// TestAbandon: a request that is given up is not reset while its answer may be
// on its way, but ended when it has come, and reset if bytes follow.
func TestAbandon(t *testing.T) {
	s, p := session(t)
	var ids []uint32
	for range 2 {
		if !s.Reserve() {
			t.Fatal("no place")
		}
		st, err := s.Open("x.example:443", nil)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, next[*http2.MetaHeadersFrame](p).StreamID)
		st.Abandon()
	}
	p.WritePing(false, [8]byte{1})
	for {
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f.Header().Type == http2.FrameRSTStream {
			t.Fatalf("%v before the answer", f)
		}
		if ping, ok := f.(*http2.PingFrame); ok && ping.IsAck() {
			break
		}
	}
	for _, id := range ids {
		p.answer(id, "200", false)
		if d := next[*http2.DataFrame](p); d.StreamID != id || !d.StreamEnded() || len(d.Data()) > 0 {
			t.Errorf("%v", d)
		}
	}
	p.WriteData(ids[0], true, nil)
	p.WriteData(ids[1], false, []byte("too late"))
	if f := next[*http2.RSTStreamFrame](p); f.StreamID != ids[1] || f.ErrCode != http2.ErrCodeCancel {
		t.Errorf("%v", f)
	}
	if n := s.Load().Streams; n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestPlaces(t *testing.T) {
	s, p := session(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	st, _ := opened(t, s, p)
	if s.Reserve() {
		t.Fatal("two streams where one is allowed")
	}
	st.Close()
	if !s.Reserve() {
		t.Fatal("the place is not free again")
	}
}

func TestSendWindowAndDeadline(t *testing.T) {
	s, p := session(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	st, id := opened(t, s, p)
	st.SetWriteDeadline(time.Now().Add(30 * time.Millisecond))
	if n, err := st.Write([]byte("xyz")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("zero window: %d %v", n, err)
	}
	st.SetDeadline(time.Time{})
	done := make(chan error, 1)
	go func() { _, err := st.Write([]byte("xyz")); done <- err }()
	for _, want := range []string{"xy", "z"} {
		p.WriteWindowUpdate(id, uint32(len(want)))
		if d := next[*http2.DataFrame](p); string(d.Data()) != want {
			t.Fatalf("%q", d.Data())
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	st.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
}

// TestReceiveWindow: a stalled reader holds one window at most, and a peer
// that sends more is cut off, without harm to other streams.
func TestReceiveWindow(t *testing.T) {
	s, p := session(t)
	st, id := opened(t, s, p)
	other, otherID := opened(t, s, p)
	piece := make([]byte, maxFrameBytes)
	for range firstWindow/maxFrameBytes + 1 {
		p.WriteData(id, false, piece)
	}
	if f := next[*http2.RSTStreamFrame](p); f.StreamID != id || f.ErrCode != http2.ErrCodeFlowControl {
		t.Fatalf("%v", f)
	}
	p.WriteData(otherID, true, []byte("fine"))
	if b, err := io.ReadAll(other); string(b) != "fine" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if n, err := io.Copy(io.Discard, st); n != firstWindow || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestHostilePeers(t *testing.T) {
	huge := hpack.HeaderField{Name: "x", Value: strings.Repeat("x", 8000)}
	for name, act := range map[string]func(p *peer, id uint32){
		"too many headers": func(p *peer, id uint32) { p.answer(id, "200", false, huge, huge, huge) },
		"no status":        func(p *peer, id uint32) { p.answer(id, "abc", false) },
		"1xx flood": func(p *peer, id uint32) {
			for range maxInterim + 1 {
				p.answer(id, "103", false)
			}
		},
		"data before headers": func(p *peer, id uint32) { p.WriteData(id, false, []byte("x")) },
		"unknown stream":      func(p *peer, id uint32) { p.WriteData(id+100, false, []byte("x")) },
		"window overflow": func(p *peer, id uint32) {
			p.WriteWindowUpdate(0, 1<<31-1)
			p.WriteWindowUpdate(0, 1<<31-1)
		},
		"garbage": func(p *peer, _ uint32) { p.c.Write(bytes.Repeat([]byte{0xff}, 100)) },
		"bad hpack": func(p *peer, id uint32) {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		},
		"push": func(p *peer, id uint32) {
			p.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, BlockFragment: []byte{0x82}, EndHeaders: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := session(t)
			c := connect(s)
			act(p, next[*http2.MetaHeadersFrame](p).StreamID)
			select {
			case r := <-c:
				if r.err == nil {
					t.Errorf("accepted: %+v", r)
				}
			case <-time.After(3 * time.Second):
				t.Error("no end")
			}
		})
	}
	t.Run("ping flood", func(t *testing.T) {
		s, p := session(t)
		p.c.SetDeadline(time.Now().Add(3 * time.Second))
		for range 1 << 20 { // answers are never read
			if p.WritePing(false, [8]byte{}) != nil {
				break
			}
		}
		<-s.Done()
	})
}

func TestAnswerNotOK(t *testing.T) {
	s, p := session(t)
	c := connect(s)
	p.answer(next[*http2.MetaHeadersFrame](p).StreamID, "407", true, hpack.HeaderField{Name: "x-error-description", Value: "no"})
	r := <-c
	if r.st != nil || r.err != nil || r.r.Status != 407 || len(r.r.Fields) != 1 {
		t.Fatalf("%+v", r)
	}
	if s.Idle() == 0 {
		t.Error("the refused stream keeps its place")
	}
}

func BenchmarkDownload(b *testing.B) {
	s, p := session(b)
	p.c.SetDeadline(time.Time{})
	st, id := opened(b, s, p)
	piece := make([]byte, maxFrameBytes)
	credit := make(chan int, 1000)
	go func() {
		defer close(credit)
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID == id {
				credit <- int(w.Increment)
			}
		}
	}()
	go func() {
		left := baseWindow
		for range b.N {
			for left < len(piece) {
				left += <-credit
			}
			left -= len(piece)
			if p.WriteData(id, false, piece) != nil {
				return
			}
		}
		p.WriteData(id, true, nil)
	}()
	b.SetBytes(int64(len(piece)))
	b.ResetTimer()
	if n, err := st.WriteTo(io.Discard); n != int64(b.N*len(piece)) || err != nil {
		b.Fatal(n, err)
	}
	b.StopTimer()
	s.Close()
	for range credit {
	}
}
