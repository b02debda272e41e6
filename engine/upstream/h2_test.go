package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// h2Peer is a proxy that speaks HTTP/2 frame by frame and echoes what a tunnel
// carries. The hooks say in which way it misbehaves.
type h2Peer struct {
	settings []http2.Setting
	// onRequest says whether to answer the n-th request of a connection (from 1)
	// with 200; it may write frames itself. Nil: always.
	onRequest func(c *h2PeerConn, id uint32, n int) bool
	// onData sees the bytes of a tunnel before they are echoed. Nil: nobody does.
	onData func(c *h2PeerConn, id uint32, b []byte)

	conns atomic.Int32
}

type h2PeerConn struct {
	net.Conn
	*http2.Framer
	served int // answered streams that are open
}

func (c *h2PeerConn) answer(id uint32, status string) {
	var b bytes.Buffer
	_ = hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: ":status", Value: status})
	_ = c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: status != "200"})
}

func (p *h2Peer) handle(raw net.Conn) {
	p.conns.Add(1)
	if _, err := io.ReadFull(raw, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	c := &h2PeerConn{Conn: raw, Framer: http2.NewFramer(raw, raw)}
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = c.WriteSettings(p.settings...)
	n, answered := 0, map[uint32]bool{}
	early := map[uint32][]byte{} // before the answer
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			n++
			if p.onRequest == nil || p.onRequest(c, f.StreamID, n) {
				c.answer(f.StreamID, "200")
				answered[f.StreamID] = true
				c.served++
			}
		case *http2.DataFrame:
			b := bytes.Clone(f.Data())
			if p.onData != nil {
				p.onData(c, f.StreamID, b)
			}
			if len(b) > 0 {
				_ = c.WriteWindowUpdate(0, uint32(len(b)))
			}
			if !answered[f.StreamID] {
				early[f.StreamID] = append(early[f.StreamID], b...)
			} else if err := c.WriteData(f.StreamID, f.StreamEnded(), b); err != nil {
				return
			}
		case *http2.RSTStreamFrame:
			if answered[f.StreamID] {
				c.served--
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.WritePing(true, f.Data)
			}
		}
	}
}

// start runs the proxy and opens an upstream through it.
func (p *h2Peer) start(t testing.TB) *Upstream {
	t.Helper()
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	addr := serve(t, overTLS(cert, p.handle, "h2"))
	return open(t, "https://"+addr.String(), func(s *Spec) { s.CA = pool }, Options{})
}

// talk sends a line through a new tunnel and expects it back.
func talkThrough(t testing.TB, u *Upstream, line string) flow.StreamConn {
	t.Helper()
	c, err := u.DialStream(within(t, 10*time.Second), flow.Target{Name: "x.example", Port: 443}, []byte(line))
	if err != nil {
		t.Error(err)
		return nil
	}
	b := make([]byte, len(line))
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != line {
		t.Errorf("%q came back as %q: %v", line, b, err)
	}
	_ = c.SetReadDeadline(time.Time{})
	return c
}

// TestH2ManyStreams: a thousand flows at once, where a session takes a
// hundred.
func TestH2ManyStreams(t *testing.T) {
	p := &h2Peer{settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 100}}}
	u := p.start(t)
	const flows = 1000
	held := make([]flow.StreamConn, flows)
	var wg sync.WaitGroup
	for i := range flows {
		wg.Go(func() { held[i] = talkThrough(t, u, fmt.Sprint("flow ", i)) })
	}
	wg.Wait()
	if n := p.conns.Load(); n < flows/100 || n > flows/100+h2Dials+1 {
		t.Errorf("%d connections", n)
	}
	for _, c := range held {
		if c != nil {
			c.Close()
		}
	}
	if s := u.Stats(); s.Failures != 0 || s.Flows != flows {
		t.Errorf("%+v", s)
	}
}

// TestH2RefusedAndGoAway: no flow notices a proxy that refuses every third
// stream and restarts all the time.
func TestH2RefusedAndGoAway(t *testing.T) {
	p := &h2Peer{}
	p.onRequest = func(c *h2PeerConn, id uint32, n int) bool {
		switch {
		case n == 10: // gracefully: what is open goes on
			_ = c.WriteGoAway(id-2, http2.ErrCodeNo, nil)
			return false
		case n%3 == 0:
			_ = c.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			return false
		}
		return true
	}
	u := p.start(t)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			if c := talkThrough(t, u, fmt.Sprint("flow ", i)); c != nil {
				c.Close()
			}
		})
		if i%8 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	if s := u.Stats(); s.Failures != 0 || s.Flows != 60 {
		t.Errorf("%+v", s)
	}
}

// TestH2Cut: a session that is lost before the answer costs the flow nothing,
// and the same bytes go to the next.
func TestH2Cut(t *testing.T) {
	var first atomic.Bool
	p := &h2Peer{}
	p.onRequest = func(c *h2PeerConn, id uint32, n int) bool {
		if first.CompareAndSwap(false, true) {
			_ = c.Close()
			return false
		}
		return true
	}
	u := p.start(t)
	u.SetEarly(EarlyCarries)
	if c := talkThrough(t, u, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); c != nil {
		c.Close()
	}
	if n := p.conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// TestH2FewServed: a proxy that admits many streams and serves few at once, as
// Apache does, is found out, and other sessions serve the rest.
func TestH2FewServed(t *testing.T) {
	p := &h2Peer{}
	p.onRequest = func(c *h2PeerConn, id uint32, _ int) bool { return c.served < h2LeastTold }
	u := p.start(t)
	var held []flow.StreamConn
	for i := range 14 {
		c := talkThrough(t, u, fmt.Sprint("flow ", i))
		if c == nil {
			t.Fatal("no tunnel")
		}
		held = append(held, c)
	}
	d := u.streams.(*secure)
	d.h2.mu.Lock()
	limit := d.h2.limit
	d.h2.mu.Unlock()
	if limit != h2LeastTold {
		t.Errorf("the limit is thought to be %d", limit)
	}
	for _, c := range held {
		c.Close()
	}
}

// TestH2SlowTarget: a target that takes long is waited for, and the proxy is
// not thought to be at fault.
func TestH2SlowTarget(t *testing.T) {
	p := &h2Peer{}
	release := make(chan struct{})
	var requests atomic.Int32
	p.onRequest = func(*h2PeerConn, uint32, int) bool {
		if requests.Add(1) > 2 {
			<-release // on each session that is asked
		}
		return true
	}
	u := p.start(t)
	for i := range 2 {
		defer talkThrough(t, u, fmt.Sprint("flow ", i)).Close()
	}
	time.AfterFunc(2*h2HedgeSoon, func() { close(release) })
	if c := talkThrough(t, u, "slow"); c != nil {
		c.Close()
	}
	if s := u.Stats(); s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

// TestH2EarlyExact: first bytes leave before the answer and arrive as they
// are, once.
func TestH2EarlyExact(t *testing.T) {
	request := []byte("GET / HTTP/1.1\r\nHost: x\r\nX: " + string(bytes.Repeat([]byte("y"), 3000)) + "\r\n\r\n")
	arrived := make(chan []byte, 8)
	p := &h2Peer{
		onRequest: func(*h2PeerConn, uint32, int) bool { return false },
		onData: func(c *h2PeerConn, id uint32, b []byte) { // only now it answers
			arrived <- b
			c.answer(id, "200")
			_ = c.WriteData(id, false, []byte("HTTP/1.1 200 OK\r\n\r\n"))
		},
	}
	u := p.start(t)
	u.SetEarly(EarlyCarries)
	var tr Trace
	c, err := u.DialStream(WithTrace(within(t, 8*time.Second), &tr), flow.Target{Name: "x.example", Port: 80}, request)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b := <-arrived; !bytes.Equal(b, request) {
		t.Errorf("%d bytes arrived of %d", len(b), len(request))
	}
	if !tr.Early || u.Stats().EarlyHits != 1 {
		t.Errorf("%+v", tr)
	}
}

// TestH2EarlyRefused: a proxy that resets a tunnel which carries bytes too soon
// gets them later.
func TestH2EarlyRefused(t *testing.T) {
	p := &h2Peer{}
	answered := false
	p.onRequest = func(c *h2PeerConn, id uint32, n int) bool {
		answered = n > 1
		return answered
	}
	p.onData = func(c *h2PeerConn, id uint32, _ []byte) {
		if !answered {
			_ = c.WriteRSTStream(id, http2.ErrCodeProtocol)
		}
	}
	u := p.start(t)
	u.SetEarly(EarlyCarries)
	if c := talkThrough(t, u, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); c != nil {
		c.Close()
	}
}

// TestH2TypedErrors: what the proxy says stays what it says, also with early
// data on the way.
func TestH2TypedErrors(t *testing.T) {
	for status, want := range map[string]Kind{"407": Auth, "502": Target} {
		p := &h2Peer{onRequest: func(c *h2PeerConn, id uint32, _ int) bool { c.answer(id, status); return false }}
		u := p.start(t)
		u.SetEarly(EarlyCarries)
		_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "x.example", Port: 80}, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		var e *Error
		if !errors.As(err, &e) || e.Kind != want {
			t.Errorf("%s: %v", status, err)
		}
	}
}

// eventually waits for something that happens in the background.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for range 1000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error(what)
}

// TestH2Spare: while bulk fills the only session, another is opened, before a
// flow asks for it; and that flow gets it.
func TestH2Spare(t *testing.T) {
	p := &h2Peer{settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 24}}}
	u := p.start(t)
	c := talkThrough(t, u, "bulk")
	if c == nil {
		t.Fatal("no tunnel")
	}
	defer c.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for ctx.Err() == nil {
			if _, err := c.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
		}
	})
	eventually(t, "no second session beside bulk", func() bool { return u.Stats().Sessions > 1 })
	var tr Trace
	d, err := u.DialStream(WithTrace(within(t, 5*time.Second), &tr), flow.Target{Name: "x.example", Port: 443}, nil)
	if err != nil || !tr.Reused {
		t.Fatalf("%v %+v", err, tr)
	}
	d.Close()
	cancel()
	c.Close()
}

// TestH2KeptOpen: a session that the proxy ends soon after use is replaced, so
// that the next flow finds one. After a change of network it is another.
func TestH2KeptOpen(t *testing.T) {
	p := &h2Peer{}
	var last atomic.Pointer[h2PeerConn]
	p.onRequest = func(c *h2PeerConn, _ uint32, _ int) bool { last.Store(c); return true }
	u := p.start(t)
	for i, lose := range []func(){
		func() { last.Load().NetConn().Close() },
		u.Flush,
	} {
		if c := talkThrough(t, u, "first"); c != nil {
			c.Close()
		}
		before := p.conns.Load()
		lose()
		eventually(t, "no new session", func() bool { return p.conns.Load() > before && u.Stats().Sessions > 0 })
		var tr Trace
		c, err := u.DialStream(WithTrace(within(t, 5*time.Second), &tr), flow.Target{Name: "x.example", Port: 443}, nil)
		if err != nil || !tr.Reused || tr.Dial != 0 {
			t.Fatalf("%d: %v %+v", i, err, tr)
		}
		c.Close()
	}
}

// NetConn is what TLS runs over.
func (c *h2PeerConn) NetConn() net.Conn { return c.Conn.(*tls.Conn).NetConn() }

// TestH2Flush: open flows survive a change of network that their session
// survives.
func TestH2Flush(t *testing.T) {
	p := &h2Peer{}
	u := p.start(t)
	c := talkThrough(t, u, "before")
	if c == nil {
		t.Fatal("no tunnel")
	}
	defer c.Close()
	u.Flush()
	if d := talkThrough(t, u, "after"); d != nil {
		d.Close()
	}
	if n := p.conns.Load(); n < 2 {
		t.Error("the flow after the change used the old session")
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}
