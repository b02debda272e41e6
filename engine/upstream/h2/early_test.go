package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// counted counts the writes on a connection.
type counted struct {
	net.Conn
	writes atomic.Int32
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestEarlyLeavesWithTheRequest(t *testing.T) {
	s, p := session(t)
	next[*http2.SettingsFrame](p) // the preface has left, and the answer to SETTINGS
	next[*http2.SettingsFrame](p)
	c := &counted{Conn: s.conn}
	s.wmu.Lock()
	s.conn = c
	s.wmu.Unlock()
	early := make([]byte, 3000)
	for i := range early {
		early[i] = byte(rand.Uint32())
	}
	s.Reserve()
	st, err := s.Open("x.example:443", early)
	if err != nil {
		t.Fatal(err)
	}
	h := next[*http2.MetaHeadersFrame](p)
	if d := next[*http2.DataFrame](p); d.StreamID != h.StreamID || !bytes.Equal(d.Data(), early) || d.StreamEnded() {
		t.Fatalf("early data: %v", d)
	}
	if n := c.writes.Load(); n != 1 {
		t.Errorf("%d writes", n)
	}
	p.answer(h.StreamID, "200", false)
	<-st.Answered()
	if r, err := st.Accept(t.Context()); r.Status != 200 || err != nil {
		t.Fatal(r, err)
	}
	st.Write([]byte("next"))
	if d := next[*http2.DataFrame](p); string(d.Data()) != "next" {
		t.Fatalf("then %q", d.Data())
	}
}

// TestEarlyBeyondTheWindow: what does not fit follows the answer, in order.
func TestEarlyBeyondTheWindow(t *testing.T) {
	s, p := session(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
	s.Reserve()
	done := make(chan error, 1)
	go func() {
		_, r, err := s.Connect(within(t, 5*time.Second), "x.example:443", []byte("earlydata"))
		if r.Status != 200 {
			err = errors.Join(err, errors.New("no answer"))
		}
		done <- err
	}()
	id := next[*http2.MetaHeadersFrame](p).StreamID
	if d := next[*http2.DataFrame](p); string(d.Data()) != "early" {
		t.Fatalf("%q in a window of 5", d.Data())
	}
	p.answer(id, "200", false)
	p.WriteWindowUpdate(id, 100)
	if d := next[*http2.DataFrame](p); string(d.Data()) != "data" {
		t.Fatalf("then %q", d.Data())
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestEarlyRefused: the typed answer survives, and so does what the session
// says of requests that it has not processed.
func TestEarlyRefused(t *testing.T) {
	s, p := session(t)
	for status, want := range map[string]int{"407": 407, "503": 503} {
		s.Reserve()
		got := make(chan Response, 1)
		go func() {
			_, r, _ := s.Connect(within(t, 5*time.Second), "x.example:443", []byte("early"))
			got <- r
		}()
		p.answer(next[*http2.MetaHeadersFrame](p).StreamID, status, true)
		if r := <-got; r.Status != want {
			t.Errorf("%s: %+v", status, r)
		}
	}
	s.Reserve()
	st, err := s.Open("x.example:443", []byte("early"))
	if err != nil {
		t.Fatal(err)
	}
	p.WriteRSTStream(next[*http2.MetaHeadersFrame](p).StreamID, http2.ErrCodeRefusedStream)
	<-st.Answered()
	if _, err := st.Accept(t.Context()); !errors.Is(err, ErrUnprocessed) {
		t.Errorf("REFUSED_STREAM: %v", err)
	}
}

// TestRequestsOvertakeBulk: a request does not wait for all who upload.
func TestRequestsOvertakeBulk(t *testing.T) {
	near, far := net.Pipe()
	s := New(near)
	t.Cleanup(func() { s.Close(); far.Close() })
	p := &peer{t: t, c: far, Framer: http2.NewFramer(far, far)}
	far.SetDeadline(time.Now().Add(8 * time.Second))
	if _, err := io.ReadFull(far, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	}()
	next[*http2.SettingsFrame](p)
	next[*http2.WindowUpdateFrame](p)
	next[*http2.SettingsFrame](p) // the answer
	<-settled
	p.WriteWindowUpdate(0, 1<<30)
	const bulk = 8
	for range bulk {
		s.Reserve()
		go func() {
			st, _, err := s.Connect(within(t, 8*time.Second), "bulk.example:1", nil)
			if err != nil {
				return
			}
			for {
				if _, err := st.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
		h := next[*http2.HeadersFrame](p)
		p.answer(h.StreamID, "200", false)
		for next[*http2.DataFrame](p).StreamID != h.StreamID {
		}
	}
	s.Reserve()
	go s.Open("x.example:443", nil) // while one of them is in the middle of a write
	for asked := false; !asked; time.Sleep(time.Millisecond) {
		asked = s.Load().Streams == bulk+1 && s.unreserved()
		if !s.Usable() {
			t.Fatal("the session has ended")
		}
	}
	for range 8 { // two writes at most; behind everybody it would be 24
		f, err := p.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.HeadersFrame); ok && h.StreamID == 2*bulk+1 {
			return
		}
	}
	t.Error("the request waits behind bulk")
}

func (s *Session) unreserved() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reserved == 0
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
