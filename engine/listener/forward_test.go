package listener

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// app is a connection to the proxy on which a test speaks for itself.
type app struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func dialT(t *testing.T, proxy string) *app {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second)) // or the test hangs
	return &app{t, c, bufio.NewReader(c)}
}

func (a *app) say(format string, args ...any) {
	a.Helper()
	if _, err := fmt.Fprintf(a.Conn, format, args...); err != nil {
		a.Fatal(err)
	}
}

// head reads a response's head.
func (a *app) head() (status string, h textproto.MIMEHeader) {
	a.Helper()
	r := textproto.NewReader(a.r)
	status, err := r.ReadLine()
	if err != nil {
		a.Fatal(err)
	}
	if h, err = r.ReadMIMEHeader(); err != nil {
		a.Fatal(err)
	}
	return status, h
}

// response reads a whole response; err is how its body ended.
func (a *app) response() (resp *http.Response, body string, err error) {
	a.Helper()
	resp, err = http.ReadResponse(a.r, nil)
	if err != nil {
		a.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// rawOrigin answers each connection by answer; what it read until the first
// empty line is in head. It returns host:port.
func rawOrigin(t *testing.T, answer func(c *net.TCPConn, head string, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r, head := bufio.NewReader(c), ""
			for !strings.HasSuffix(head, "\r\n\r\n") {
				line, err := r.ReadString('\n')
				if head += line; err != nil {
					break
				}
			}
			answer(c.(*net.TCPConn), head, r)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String()
}

func TestForwardedRequest(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	heads := make(chan string, 1)
	host := rawOrigin(t, func(c *net.TCPConn, head string, _ *bufio.Reader) {
		heads <- head
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Y: z\r\n\r\n<html>")
	})
	tests := []struct{ request, want string }{
		{"GET http://%s/a?b=c HTTP/1.1\r\nHost: other\r\nX-Lower: 1\r\nProxy-Connection: keep-alive\r\n\r\n",
			"GET /a?b=c HTTP/1.1\r\nHost: %s\r\nX-Lower: 1\r\n\r\n"},
		{"OPTIONS http://%s HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: %s\r\n\r\n"},
		{"GET http://u:p@%s/ HTTP/1.1\r\nHost: x\r\nUser-Agent: mine\r\n\r\n", "GET / HTTP/1.1\r\nHost: %s\r\nUser-Agent: mine\r\n\r\n"},
		{"GET http://%s/%%2e%%2E//a%%2Fb HTTP/1.1\r\nHost: x\r\n\r\n", "GET /%%2e%%2E//a%%2Fb HTTP/1.1\r\nHost: %s\r\n\r\n"},
		{"GET http://%s/ HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", "GET / HTTP/1.1\r\nHost: %s\r\n\r\n"},
		{"GET http://%s/ HTTP/1.1\r\nHost: x\r\nTE: trailers, deflate\r\nConnection: TE\r\nKeep-Alive: 1\r\n\r\n", "GET / HTTP/1.1\r\nHost: %s\r\nConnection: TE\r\nTE: trailers\r\n\r\n"},
		{"GET http://%s/ HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: %s\r\n\r\n"},
	}
	for _, tt := range tests {
		a := dialT(t, proxy)
		a.say(tt.request, host)
		if got, want := <-heads, fmt.Sprintf(tt.want, host); got != want {
			t.Errorf("the origin saw %q, want %q", got, want)
		}
		resp, body, err := a.response()
		if err != nil || body != "<html>" || resp.Header.Get("X-Y") != "z" || resp.Header["Content-Type"] != nil {
			t.Errorf("%v %q %v", resp, body, err)
		}
	}
}

// TestSmuggling: whatever the framing, the origin sees one request at most, and
// never what an app hid in another's body (RFC 9112 section 11.2).
func TestSmuggling(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	paths := make(chan string, 100)
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		paths <- r.URL.Path
	})
	for _, framing := range []string{
		"Content-Length: 6\r\nContent-Length: 5\r\n\r\n" + hidden,
		"Content-Length: +5\r\n\r\n" + hidden,
		"Content-Length: 0x5\r\n\r\n" + hidden,
		"Content-Length : 5\r\n\r\n" + hidden,
		"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + hidden,
		"Content-Length: 5, 6\r\n\r\n" + hidden,
		"Content-Length: 5,\r\n\r\n" + hidden,
		"Content-Length:\r\n\r\n" + hidden,
		"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n" + hidden,
		"X: y\x00\r\n\r\n" + hidden,
		"Host: y\r\n\r\n" + hidden,
	} {
		got := talk(t, proxy, fmt.Appendf(nil, "POST http://127.0.0.1:%s/first HTTP/1.1\r\nHost: x\r\n%s", port, framing))
		// A broken body is noticed while it is passed on, so that the target may
		// see the request, but the app gets no good answer to anything after it.
		if !strings.HasPrefix(got, "HTTP/1.1 400") && !strings.HasPrefix(got, "HTTP/1.1 501") && !strings.HasPrefix(got, "HTTP/1.1 502") && got != "" {
			t.Errorf("%q: %q", framing, got)
		}
	}
	for len(paths) > 0 {
		if path := <-paths; path == "/hidden" {
			t.Error("a hidden request reached the origin")
		}
	}
}

func TestExpectContinue(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		io.Copy(w, r.Body)
	})
	a := dialT(t, proxy)
	a.say("POST http://127.0.0.1:%s/yes HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", port)
	if status, _ := a.head(); status != "HTTP/1.1 100 Continue" {
		t.Fatal(status)
	}
	a.say("body")
	if resp, body, err := a.response(); err != nil || body != "body" || resp.StatusCode != 200 {
		t.Error(resp, body, err)
	}
	a = dialT(t, proxy)
	a.say("POST http://127.0.0.1:%s/no HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", port)
	if resp, _, err := a.response(); err != nil || resp.StatusCode != 417 {
		t.Error(resp, err)
	}
}

func TestInterimResponses(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.WriteString(w, "x")
	})
	a := dialT(t, proxy)
	a.say("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", port)
	if status, h := a.head(); !strings.HasPrefix(status, "HTTP/1.1 103") || h.Get("Link") == "" {
		t.Error(status, h)
	}
	if resp, body, err := a.response(); err != nil || body != "x" || resp.Header.Get("Link") != "" {
		t.Error(resp, body, err)
	}
	a = dialT(t, proxy)
	a.say("GET http://127.0.0.1:%s/ HTTP/1.0\r\nHost: x\r\n\r\n", port)
	if resp, body, err := a.response(); err != nil || body != "x" || resp.StatusCode != 200 {
		t.Error("HTTP/1.0:", resp, body, err)
	}
}

func TestTrailers(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "of "+r.Trailer.Get("X-App"))
		if r.URL.Path == "/more" {
			w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
		}
	})
	for _, path := range []string{"/", "/more"} {
		a := dialT(t, proxy)
		a.say("POST http://127.0.0.1:%s%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-App\r\nTE: trailers\r\n\r\n3\r\nabc\r\n0\r\nX-App: 7\r\n\r\n", port, path)
		resp, body, err := a.response()
		if err != nil || body != "abc" || resp.Trailer.Get("X-Sum") != "of 7" {
			t.Error(body, err, resp.Trailer)
		}
		if path == "/more" && resp.Trailer.Get("X-Unannounced") != "too" {
			t.Error("the unannounced trailer is lost:", resp.Trailer)
		}
	}
}

// TestStreams: what has come passes at once, in both directions; neither end
// goes on before.
func TestStreams(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	for _, length := range []string{"", "8"} {
		port := origin(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", length)
			if length == "" {
				w.Header().Del("Content-Length")
			}
			http.NewResponseController(w).EnableFullDuplex()
			b := make([]byte, 4)
			for range 2 {
				if _, err := io.ReadFull(r.Body, b); err != nil {
					return
				}
				w.Write(b)
				w.(http.Flusher).Flush()
			}
			io.Copy(io.Discard, r.Body)
		})
		a := dialT(t, proxy)
		a.say("POST http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none,\r\n", port)
		resp, err := http.ReadResponse(a.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "one," {
			t.Fatalf("%q %v", b, err)
		}
		a.say("4\r\ntwo.\r\n0\r\n\r\n")
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "two." {
			t.Errorf("%q %v", b, err)
		}
	}
}

// stuckDialer is a flow.Handler whose dials last until their context ends.
type stuckDialer struct {
	direct
	begun, ended chan bool
}

func (d *stuckDialer) HandleStream(ctx context.Context, _ flow.Flow, _ flow.Pending) {
	d.begun <- true
	<-ctx.Done()
	d.ended <- true
}

// TestAppLeavesDial: nobody dials on for an app that has gone.
func TestAppLeavesDial(t *testing.T) {
	d := &stuckDialer{begun: make(chan bool, 1), ended: make(chan bool, 1)}
	a := dialT(t, start(t, d))
	a.say("GET http://origin.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
	<-d.begun
	a.Conn.(*net.TCPConn).SetLinger(0)
	a.Close()
	select {
	case <-d.ended:
	case <-time.After(10 * time.Second):
		t.Error("the dial goes on")
	}
}

// TestAppLeaves: nobody works on for an app that has gone.
func TestAppLeaves(t *testing.T) {
	proxy := startWith(t, Options{Handler: &direct{}, User: owners(t)})
	begun, gone := make(chan bool), make(chan bool)
	port := origin(t, func(_ http.ResponseWriter, r *http.Request) {
		begun <- true
		<-r.Context().Done()
		gone <- true
	})
	a := dialT(t, proxy)
	a.say("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", port)
	<-begun
	a.Close()
	<-gone
}

// FuzzTargetOfAuthority: whatever a request line says, a target is a host name
// or an address, and a port.
func FuzzTargetOfAuthority(f *testing.F) {
	for _, s := range []string{"a.test:443", "[::1]:80", "A.Test.", "[fe80::1%25eth0]:1", "::1", "a:b:c", "a.test:0", "a\r\nb:1", "x@y:1", ":80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, standard := range []uint16{0, 80} {
			to, err := targetOfAuthority(s, standard)
			if err != nil {
				continue
			}
			if to.Port == 0 || (to.Name == "") != to.Addr.IsValid() || strings.Trim(to.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(to.Name) > 253 {
				t.Fatalf("%q: %+v", s, to)
			}
		}
	})
}

// TestBrokenResponses: what is cut short does not look whole.
func TestBrokenResponses(t *testing.T) {
	var d direct
	proxy := start(t, &d)
	for _, tt := range []struct {
		answer string
		reset  bool
		status int // 0: the body is cut
	}{
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n", false, 0},
		{"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabcd", false, 0},
		{"HTTP/1.1 200 OK\r\n\r\nabcd", true, 0},
		{"HTTP/1.1 200 OK\r\n\r\nabcd", false, 200},
		{"HTTP/1.1 099 What\r\nContent-Length: 0\r\n\r\n", false, 502},
		{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", false, 502},
		{"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHead) + "\r\n\r\n", false, 502},
		{"SSH-2.0-x\r\n", false, 502},
		{"", false, 502},
	} {
		host := rawOrigin(t, func(c *net.TCPConn, _ string, r *bufio.Reader) {
			io.WriteString(c, tt.answer)
			if tt.reset {
				r.ReadByte() // until the app has had what there is
				c.SetLinger(0)
			}
		})
		a := dialT(t, proxy)
		a.say("POST http://%s/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n", host)
		if tt.status < 500 && tt.reset {
			if resp, err := http.ReadResponse(a.r, nil); err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			} else if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			} else {
				a.say("x")
				if _, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("%.60q: reset, yet whole", tt.answer)
				}
			}
			continue
		}
		a.say("x")
		resp, body, err := a.response()
		if tt.status == 0 && err == nil || tt.status != 0 && (err != nil || resp.StatusCode != tt.status) {
			t.Errorf("%.60q: %d %q %v", tt.answer, resp.StatusCode, body, err)
		}
	}
}

// TestHeadIsThereAtOnce: the handler of a plain request gets its head as the first bytes
// after Accept, so that it can be early data.
func TestHeadIsThereAtOnce(t *testing.T) {
	h := &headReader{heads: make(chan string, 1)}
	proxy := start(t, h)
	a := dialT(t, proxy)
	a.say("GET http://origin.test/x HTTP/1.1\r\nHost: origin.test\r\n\r\n")
	if resp, body, err := a.response(); err != nil || body != "ok" {
		t.Error(resp, body, err)
	}
	if head := <-h.heads; !slices.Equal(strings.Split(head, "\r\n"), []string{"GET /x HTTP/1.1", "Host: origin.test", "", ""}) {
		t.Errorf("%q", head)
	}
}

// headReader accepts, reads once, and answers.
type headReader struct {
	dialer
	heads chan string
}

func (h *headReader) HandleStream(_ context.Context, _ flow.Flow, p flow.Pending) {
	c, err := p.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	b := make([]byte, 16<<10)
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, _ := c.Read(b)
	h.heads <- string(b[:n])
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
}
