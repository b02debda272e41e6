package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestSettingsChange: what the peer allows may change at any time, also below
// what has been sent already (RFC 9113 section 6.9.2).
func TestSettingsChange(t *testing.T) {
	s, p := session(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	st, id := opened(t, s, p)
	done := make(chan error, 1)
	go func() { _, err := st.Write(bytes.Repeat([]byte("x"), 30)); done <- err }()
	if d := next[*http2.DataFrame](p); len(d.Data()) != 10 {
		t.Fatalf("%d bytes in a window of 10", len(d.Data()))
	}
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}) // the window is -6 now
	p.WriteWindowUpdate(id, 6)
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7})
	if d := next[*http2.DataFrame](p); len(d.Data()) != 3 {
		t.Fatalf("%d bytes in a window of 3", len(d.Data()))
	}
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	if d := next[*http2.DataFrame](p); len(d.Data()) != 17 {
		t.Fatalf("%d bytes of the last 17", len(d.Data()))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s.Reserve() {
		t.Error("a second stream where one is allowed by now")
	}
}

// TestRapidReset: a peer that resets everything harms nobody else.
func TestRapidReset(t *testing.T) {
	s, p := session(t)
	kept, keptID := opened(t, s, p)
	for range 300 {
		c := connect(s)
		id := next[*http2.MetaHeadersFrame](p).StreamID
		p.answer(id, "200", false)
		p.WriteRSTStream(id, http2.ErrCodeInternal)
		if r := <-c; r.err == nil {
			if _, err := r.st.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("reset stream: %v", err)
			}
			r.st.Close()
		}
	}
	p.WriteData(keptID, true, []byte("kept"))
	if b, err := io.ReadAll(kept); string(b) != "kept" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	if l := s.Load(); l.Streams != 1 {
		t.Errorf("%d streams left of one", l.Streams)
	}
}

func TestLostWithOpenStreams(t *testing.T) {
	for name, lose := range map[string]func(p *peer, answered uint32){
		"goaway with an error": func(p *peer, id uint32) { p.WriteGoAway(id, http2.ErrCodeInternal, []byte("bye")); p.c.Close() },
		"cut":                  func(p *peer, _ uint32) { p.c.Close() },
		"reset":                func(p *peer, _ uint32) { p.c.(*net.TCPConn).SetLinger(0); p.c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s, p := session(t)
			st, id := opened(t, s, p)
			c := connect(s)
			next[*http2.MetaHeadersFrame](p)
			lose(p, id)
			if r := <-c; !errors.Is(r.err, ErrUnprocessed) {
				t.Errorf("unanswered: %v", r.err)
			}
			if _, err := st.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("answered: %v", err)
			}
			<-s.Done()
		})
	}
}

// TestFloods: each ends the session, or is harmless, in bounded memory.
func TestFloods(t *testing.T) {
	var table bytes.Buffer // a long field into the dynamic table, then a thousand times by index
	e := hpack.NewEncoder(&table)
	e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	big := hpack.HeaderField{Name: "x", Value: string(bytes.Repeat([]byte("y"), 4000))}
	for range 4000 {
		e.WriteField(big)
	}
	for name, act := range map[string]func(p *peer, id uint32) error{
		"continuation": func(p *peer, id uint32) error {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			return p.WriteContinuation(id, false, bytes.Repeat([]byte{0x00, 1, 'a', 1, 'b'}, 3000))
		},
		"empty continuation": func(p *peer, id uint32) error {
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			for range 100_000 {
				if err := p.WriteContinuation(id, false, nil); err != nil {
					return err
				}
			}
			return p.WriteContinuation(id, true, bytes.Repeat([]byte{0xff}, 100))
		},
		"header bomb": func(p *peer, id uint32) error {
			return p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: table.Bytes(), EndHeaders: true})
		},
		"empty data": func(p *peer, id uint32) error {
			p.answer(id, "200", false)
			for range 2 * maxEmpty {
				if err := p.WriteData(id, false, nil); err != nil {
					return err
				}
			}
			return p.WriteRSTStream(id, http2.ErrCodeInternal)
		},
		"settings": func(p *peer, id uint32) error {
			for range 1 << 20 { // answers are never read
				if err := p.WriteSettings(); err != nil {
					return err
				}
			}
			return nil
		},
		"window of a stream": func(p *peer, id uint32) error {
			p.WriteWindowUpdate(id, 1<<31-1)
			return p.WriteWindowUpdate(id, 1<<31-1)
		},
		"connection window ignored": func(p *peer, id uint32) error {
			for range connWindow/maxFrameBytes + 2 { // of a stream that does not exist any more
				if err := p.WriteData(id, false, make([]byte, maxFrameBytes)); err != nil {
					return err
				}
			}
			return p.WriteRSTStream(id, http2.ErrCodeInternal)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, p := session(t)
			c := connect(s)
			id := next[*http2.MetaHeadersFrame](p).StreamID
			go act(p, id)
			select {
			case r := <-c:
				if r.st != nil { // the flood comes after the answer
					r.st.SetReadDeadline(time.Now().Add(5 * time.Second))
					if _, err := r.st.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("read: %v", err)
					}
				}
			case <-time.After(6 * time.Second):
				t.Error("no end")
			}
			p.c.Close()
		})
	}
}

// TestStalledReaders: readers that stall hold no more than their windows, and
// the others go on, however much comes.
func TestStalledReaders(t *testing.T) {
	s, p := session(t)
	p.c.SetDeadline(time.Now().Add(12 * time.Second))
	var ids []uint32
	for range 40 { // more than extraBytes are for
		_, id := opened(t, s, p)
		ids = append(ids, id)
	}
	quick, quickID := opened(t, s, p)
	limits := map[uint32]int{0: protocolWindow}
	for _, id := range append(ids, quickID) {
		limits[id] = baseWindow
	}
	var mu sync.Mutex
	more := sync.NewCond(&mu)
	go func() {
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			if w, ok := f.(*http2.WindowUpdateFrame); ok {
				mu.Lock()
				limits[w.StreamID] += int(w.Increment)
				more.Broadcast()
				mu.Unlock()
			}
		}
	}()
	// The windows that were given as streams opened have gone by: see opened.
	mu.Lock()
	limits[0] = connWindow
	mu.Unlock()
	piece := make([]byte, maxFrameBytes)
	for _, id := range ids {
		for range baseWindow / len(piece) {
			if err := p.WriteData(id, false, piece); err != nil {
				t.Fatal(err)
			}
			limits0(&mu, limits, len(piece))
		}
	}
	const total = 24 << 20 // beyond the connection's window
	got := make(chan int64, 1)
	go func() { n, _ := io.Copy(io.Discard, quick); got <- n }()
	for range total / len(piece) {
		mu.Lock()
		for limits[0] < len(piece) || limits[quickID] < len(piece) {
			more.Wait()
		}
		limits[0] -= len(piece)
		limits[quickID] -= len(piece)
		mu.Unlock()
		if err := p.WriteData(quickID, false, piece); err != nil {
			t.Fatal(err)
		}
	}
	p.WriteData(quickID, true, nil)
	if n := <-got; n != total {
		t.Errorf("%d bytes of %d beside stalled readers", n, total)
	}
	s.mu.Lock()
	held, extra := s.held, s.extra
	s.mu.Unlock()
	if held != int64(len(ids)*baseWindow) || extra > extraBytes {
		t.Errorf("%d bytes held, %d beyond the base windows", held, extra)
	}
}

func limits0(mu *sync.Mutex, limits map[uint32]int, n int) {
	mu.Lock()
	defer mu.Unlock()
	limits[0] -= n
}

// FuzzFrames: whatever a peer sends, the session ends cleanly and gives
// streams no byte that did not come.
func FuzzFrames(f *testing.F) {
	frame := func(write func(*http2.Framer)) []byte {
		var b bytes.Buffer
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x88}, EndHeaders: true})
		write(fr)
		return b.Bytes()
	}
	f.Add([]byte(nil))
	f.Add(frame(func(fr *http2.Framer) { fr.WriteData(1, true, []byte("hello")) }))
	f.Add(frame(func(fr *http2.Framer) { fr.WriteDataPadded(1, false, []byte("hello"), make([]byte, 200)) }))
	f.Add(frame(func(fr *http2.Framer) { fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1}) }))
	f.Add(frame(func(fr *http2.Framer) { fr.WriteGoAway(0, http2.ErrCodeNo, nil); fr.WriteData(1, false, []byte("x")) }))
	f.Add(frame(func(fr *http2.Framer) {
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize})
		fr.WriteWindowUpdate(1, 5)
		fr.WriteRSTStream(1, 8)
	}))
	f.Add(frame(func(fr *http2.Framer) { fr.WritePing(true, [8]byte{7: 1}); fr.WritePing(false, [8]byte{}) }))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &script{in: bytes.NewReader(in), sent: make(chan struct{})}
		s := New(c)
		defer s.Close()
		s.Reserve()
		st, err := s.Open("x.example:1", []byte("early"))
		if err != nil {
			return
		}
		close(c.sent)
		<-st.Answered()
		if r, err := st.Accept(t.Context()); err != nil || r.Status/100 != 2 {
			return
		}
		n, _ := io.Copy(io.Discard, st)
		if n > int64(len(in)) {
			t.Fatalf("%d bytes out of %d", n, len(in))
		}
		st.Close()
		<-s.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held != 0 {
			t.Fatalf("%d bytes held by nobody", s.held)
		}
	})
}

// script is a connection to a peer that says what it has to say once it has
// been asked.
type script struct {
	net.Conn
	in   io.Reader
	sent chan struct{}
}

func (c *script) Read(p []byte) (int, error) {
	<-c.sent
	return c.in.Read(p)
}
func (c *script) Write(p []byte) (int, error) { return len(p), nil }
func (c *script) Close() error                { return nil }
func (c *script) SetDeadline(time.Time) error { return nil }
func (c *script) LocalAddr() net.Addr         { return nil }
func (c *script) RemoteAddr() net.Addr        { return nil }
