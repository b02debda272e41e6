package upstream

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

func TestRepeatOf(t *testing.T) {
	hello := helloBytes(t)
	for _, b := range [][]byte{
		hello, hello[:len(hello)-1], hello[:6], []byte(getHead), []byte("HEAD / HTTP/1.0\n\n"),
		[]byte("OPTIONS * HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), append(bytes.Clone(hello), 22, 3),
	} {
		want := afterFailure
		if b[0] == tlsHandshake {
			want = always
		}
		if repeatOf(b) != want {
			t.Errorf("%.40q: %d", b, repeatOf(b))
		}
	}
	for _, b := range [][]byte{
		nil, {22}, {22, 3, 1, 0, 1, 2}, hello[1:], append(bytes.Clone(hello), 23, 3, 3, 0, 1, 0), // 0-RTT
		[]byte("POST / HTTP/1.1\r\n\r\n"), []byte("GET / HTTP/1.1\r\n"), []byte(getHead + "x"), []byte(getHead + getHead),
		[]byte("GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\n"), []byte("GET / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n"),
		[]byte("SSH-2.0-x\r\n"), []byte("GETX / HTTP/1.1\r\n\r\n"), {5, 1, 0}, {22, 3, 1, 0, 1},
	} {
		if repeatOf(b) != never {
			t.Errorf("%.60q: %d", b, repeatOf(b))
		}
	}
	if n := testing.AllocsPerRun(100, func() { repeatOf(hello); repeatOf([]byte(getHead)) }); n != 0 && !underRace {
		t.Errorf("%v allocations", n)
	}
}

func FuzzRepeatOf(f *testing.F) {
	f.Add([]byte(getHead))
	f.Add(helloBytes(f))
	f.Add([]byte("OPTIONS * HTTP/1.1\nContent-Length:0\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if repeatOf(b) == never || b[0] == tlsHandshake {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return // a server refuses it, each time
		}
		if r.Method != "GET" && r.Method != "HEAD" && r.Method != "OPTIONS" || r.ContentLength > 0 || len(r.TransferEncoding) > 0 {
			t.Fatalf("%q has content: %s %d", b, r.Method, r.ContentLength)
		}
	})
}

// hasty is a CONNECT proxy that passes bytes on before it has answered, which
// takes it long while slow is positive.
func hasty(server string, slow *atomic.Int32) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		out, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		early := make([]byte, br.Buffered())
		_, _ = io.ReadFull(br, early)
		_, _ = out.Write(early)
		if slow.Add(-1) >= 0 {
			time.Sleep(2500 * time.Millisecond)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		splitRelay(c, out.(*net.TCPConn), br)
	}
}

// countingServer answers GET as webServer does, and counts.
func countingServer(t testing.TB) (addr string, requests *atomic.Int32) {
	requests = new(atomic.Int32)
	return serve(t, func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		if r.Method == "GET" {
			requests.Add(1)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na.exa")
		_, _ = io.Copy(io.Discard, c)
	}).String(), requests
}

// TestNoRequestBesideItself: while a GET that has left ahead may still be
// answered, no other connection, member or session is tried with it.
func TestNoRequestBesideItself(t *testing.T) {
	t.Run("idle connection", func(t *testing.T) {
		t.Parallel()
		server, requests := countingServer(t)
		var slow atomic.Int32
		u := open(t, "http://"+serve(t, hasty(server, &slow)).String(), nil, Options{})
		u.SetEarly(EarlyCarries)
		get(t, u)
		settles(t, u, EarlyCarries)
		settle(t, u, 1)
		slow.Store(1)
		if tr := get(t, u); !tr.Early || !tr.Warm {
			t.Errorf("not what was to be tested: %+v", tr)
		}
		if n := requests.Load(); n != 2 {
			t.Errorf("2 requests reached the target %d times", n)
		}
	})
	t.Run("group", func(t *testing.T) {
		t.Parallel()
		server, requests := countingServer(t)
		var slow, quick atomic.Int32
		u, _ := groupOf(t, gateAt(serve(t, hasty(server, &slow)), "http", "slow"), gateAt(serve(t, hasty(server, &quick)), "http", "quick"))
		for u.Early() != EarlyCarries {
			get(t, u)
		}
		requests.Store(0)
		slow.Store(1)
		if tr := get(t, u); !tr.Early || tr.Endpoint != "slow" {
			t.Errorf("not what was to be tested: %+v", tr)
		}
		if n := requests.Load(); n != 1 {
			t.Errorf("a request reached the target %d times", n)
		}
	})
	t.Run("session", func(t *testing.T) {
		t.Parallel()
		var requests, slow atomic.Int32
		var waits atomic.Uint32 // the stream that is not answered
		p := &h2Peer{onRequest: func(c *h2PeerConn, id uint32, _ int) bool {
			if slow.Add(-1) == 0 {
				waits.Store(id)
				return false
			}
			return true
		}}
		p.onData = func(c *h2PeerConn, id uint32, b []byte) {
			if !bytes.HasPrefix(b, []byte("GET ")) {
				return
			}
			if requests.Add(1); waits.CompareAndSwap(id, 0) {
				time.Sleep(1700 * time.Millisecond) // not so long that it seems dead
				c.answer(id, "200")
				_ = c.WriteData(id, false, b)
			}
		}
		u := p.start(t)
		for i := range 3 { // it has served three streams, and serves two
			c := talkThrough(t, u, "\x00hello")
			if i < 2 {
				defer c.Close()
			} else {
				c.Close()
			}
		}
		u.SetEarly(EarlyCarries)
		u.prover.doubt.Store(false)
		slow.Store(1)
		if c := talkThrough(t, u, getHead); c != nil {
			c.Close()
		}
		if n := requests.Load(); n != 1 {
			t.Errorf("a request was sent %d times", n)
		}
	})
}
