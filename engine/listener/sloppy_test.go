package listener

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestPathsPassAsTheyCame: a proxy must not change the path (RFC 9110 section
// 7.7): what is signed is signed as it is.
func TestPathsPassAsTheyCame(t *testing.T) {
	proxy := start(t, &direct{})
	heads := make(chan string, 1)
	host := rawOrigin(t, func(c *net.TCPConn, head string, _ *bufio.Reader) {
		heads <- head
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	_, port, _ := net.SplitHostPort(host)
	for _, path := range []string{
		"/", "/100%", "/a|b", `/"a"`, "/{a}[b]^`\\", "/ü/\xff", "/%zz%2f%2F", "//a/../b/./", "/a;b=c,d", "/?q=%", "/a?b?c|{}\"'", "?x=/y|", "/<>", "/a#b", "/:@!$&'()*+=",
	} {
		a := dialT(t, proxy)
		a.say("GET http://%s%s HTTP/1.1\r\nHost: x\r\n\r\n", host, path)
		if a.response(); strings.HasPrefix(path, "?") {
			path = "/" + path // an empty path is "/" (RFC 9112 section 3.2.1)
		}
		if got, want := <-heads, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host); got != want {
			t.Errorf("the target saw %q, want %q", got, want)
		}
	}
	for authority, want := range map[string]string{"HTTP://" + host: host, "http://u:p@x@" + host: host, "http://127.0.0.1.:" + port: "127.0.0.1.:" + port} {
		a := dialT(t, proxy)
		a.say("\r\n\r\nGET %s/ HTTP/1.1\r\nHost: x\r\nName:  v  w \r\nname:\r\n\r\n", authority)
		a.response()
		if got, want := <-heads, "GET / HTTP/1.1\r\nHost: "+want+"\r\nName: v  w\r\nname: \r\n\r\n"; got != want {
			t.Errorf("the target saw %q, want %q", got, want)
		}
	}
}

// TestAuthorities: an address of every form, with and without a port.
func TestAuthorities(t *testing.T) {
	for authority, want := range map[string]string{
		"a.test": "a.test:80", "a.test:": "a.test:80", "A.test.:8": "a.test:8", "[2001:db8::1]": "[2001:db8::1]:80", "[2001:db8::1]:": "[2001:db8::1]:80",
		"[::1]:8": "[::1]:8", "192.0.2.1": "192.0.2.1:80", "192.0.2.1.:1": "192.0.2.1:1", "[::ffff:192.0.2.1]:1": "192.0.2.1:1", "[fe80::1%25eth0]:1": "[fe80::1%eth0]:1",
		"::1": "", "[::1": "", "[a.test]": "", "[192.0.2.1]:1": "", "a:b:1": "", "a.test:0": "", "a.test:65536": "", "a.test:+1": "", ":80": "", "": "", "a b": "", "[::1]x:1": "", "bücher.test": "xn--bcher-kva.test:80", "1.2.3": "",
	} {
		got, err := targetOfAuthority(authority, 80)
		if want == "" && err == nil || want != "" && (err != nil || got.String() != want) {
			t.Errorf("%q: %v, %v; want %q", authority, got, err, want)
		}
	}
}

// sloppy are answers that browsers read, what of them is the content, and
// whether it is whole.
var sloppy = []struct {
	name, answer, body string
	whole              bool
}{
	{"lengths alike in a list", "HTTP/1.1 200 OK\r\nContent-Length: 11, 11\r\n\r\nhello world", "hello world", true},
	{"lengths alike in two fields", "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nContent-Length: 11\r\n\r\nhello world", "hello world", true},
	{"an empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", "hello", true},
	{"identity", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", "hello", true},
	{"identity to the end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello", "hello", true},
	{"chunked twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello", true},
	{"chunks and a length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello", true},
	{"chunks of HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello", true},
	{"chunks with LF", "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n6\n world\n0\n\n", "hello world", true},
	{"chunks with space and extensions", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n005  \r\nhello\r\n6 ;a=\"b\"\r\n world\r\n0;x\r\n\r\n", "hello world", true},
	{"no line end at the end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", "hello", true},
	{"a trailer without Trailer", "HTTP/1.1 200 funky chunky!\r\nTransfer-Encoding: chunked\r\nConnection: mooo\r\n\r\n5\nhello\n0\nchunky-trailer: data\n\n", "hello", true},
	{"no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello", false},
	{"a chunk cut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", "hello", false},
	{"a chunk that is none", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n", "hello", false},
	{"less than its length", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "hello", false},
	{"fields that are none", "HTTP/1.1 200 OK\r\n folded\r\nno colon\r\nContent-Length : 5\r\nX: a\x00b\r\n c\r\n(bad): x\r\n\r\nhello", "hello", true},
	{"no reason, HTTP/1.0", "HTTP/1.0 200\r\n\r\nhello", "hello", true},
	{"SHOUTcast", "ICY 200 OK\r\nicy-name: x\r\n\r\nhello", "hello", true},
}

func sloppyOrigin(t *testing.T, answer string) (host string) {
	return rawOrigin(t, func(c *net.TCPConn, _ string, _ *bufio.Reader) { io.WriteString(c, answer) })
}

// TestSloppyServers: what came reaches the app, and looks whole if it is.
func TestSloppyServers(t *testing.T) {
	proxy := start(t, &direct{})
	for _, tt := range sloppy {
		for _, version := range []string{"HTTP/1.1", "HTTP/1.0"} {
			a := dialT(t, proxy)
			a.say("GET http://%s/ %s\r\nHost: x\r\n\r\n", sloppyOrigin(t, tt.answer), version)
			_, body, err := a.response()
			if body != tt.body || tt.whole != (err == nil) && version == "HTTP/1.1" {
				t.Errorf("%s, %s: %q, %v", tt.name, version, body, err)
			}
		}
	}
}

// TestCurlOfSloppyServers: as a real client sees them.
func TestCurlOfSloppyServers(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("SKIPPED: no curl")
	}
	proxy := start(t, &direct{})
	for _, tt := range sloppy {
		host := sloppyOrigin(t, tt.answer)
		var stderr bytes.Buffer
		cmd := exec.Command(curl, "-sS", "-m", "20", "-x", "http://"+proxy, "--etag-save", t.TempDir()+"/etag", "http://"+host+"/")
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if string(out) != tt.body || tt.whole != (err == nil) {
			t.Errorf("%s: %q, %v %s", tt.name, out, err, stderr.Bytes())
		}
	}
}

// TestSloppyServersAreNotReused: what is to be understood in two ways is the last
// thing that is read of a connection.
func TestSloppyServersAreNotReused(t *testing.T) {
	d := &direct{}
	proxy := start(t, d)
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
	} {
		before := d.count()
		port := origin(t, func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { c.Close() }) // it stays open
			io.WriteString(c, answer)
		})
		for range 2 {
			a := dialT(t, proxy)
			for range 2 {
				a.say("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", port)
				if _, body, err := a.response(); body != "" || err != nil {
					t.Errorf("%q: %q, %v", answer, body, err)
				}
			}
		}
		if n := d.count() - before; n != 4 {
			t.Errorf("%q: %d connections for 4 requests", answer, n)
		}
	}
}

// TestHalfClosedApp: an app that has said all it has to say gets its answer.
func TestHalfClosedApp(t *testing.T) {
	proxy := startWith(t, Options{Handler: &direct{}, User: owners(t)})
	for _, wait := range []time.Duration{0, 3 * watchAfter} {
		port := origin(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			time.Sleep(wait) // the end has come before
			io.WriteString(w, "here")
		})
		for _, request := range []string{
			"GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n",
			"POST http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxy",
			"POST http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		} {
			a := dialT(t, proxy)
			a.say(request, port)
			a.Conn.(*net.TCPConn).CloseWrite()
			if _, body, err := a.response(); err != nil || body != "here" {
				t.Errorf("%.4s after %v: %q, %v", request, wait, body, err)
			}
		}
	}
}

// TestAnswerBeforeTheBodyIsSent: the target refuses a long body and hangs up; the
// app hears why.
func TestAnswerBeforeTheBodyIsSent(t *testing.T) {
	proxy := start(t, &direct{})
	host := rawOrigin(t, func(c *net.TCPConn, _ string, r *bufio.Reader) {
		io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo long")
		c.CloseWrite()
		io.Copy(io.Discard, r)
	})
	for range 20 {
		a := dialT(t, proxy)
		a.say("POST http://%s/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", host, 100<<20, strings.Repeat("x", 64<<10))
		go func() {
			for {
				if _, err := a.Write(make([]byte, 16<<10)); err != nil {
					return
				}
			}
		}()
		if resp, body, err := a.response(); err != nil || resp.StatusCode != 413 || body != "too long" {
			t.Error(resp, body, err)
		}
		a.Close()
	}
}

// TestKeptConnectionThatHasGone: a request that may be repeated is, when the
// connection that was kept turns out to be closed; one that may not is not.
func TestKeptConnectionThatHasGone(t *testing.T) {
	proxy := start(t, &direct{})
	for _, tt := range []struct {
		method   string
		status   int // of the second request
		requests int64
	}{{"GET", 200, 3}, {"POST", 502, 2}} {
		var seen sync.Map
		var requests atomic.Int64
		port := origin(t, func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			if _, again := seen.Swap(r.RemoteAddr, true); again { // the second one on a connection has no answer
				panic(http.ErrAbortHandler)
			}
			io.WriteString(w, "ok")
		})
		a := dialT(t, proxy)
		for i, status := range []int{200, tt.status} {
			a.say("%s http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", tt.method, port)
			if resp, _, err := a.response(); err != nil || resp.StatusCode != status {
				t.Errorf("%s %d: %v, %v", tt.method, i, resp, err)
			}
		}
		if n := requests.Load(); n != tt.requests {
			t.Errorf("%s: %d requests reached the target, want %d", tt.method, n, tt.requests)
		}
	}
}

// TestSOCKS5Methods: as many as there can be.
func TestSOCKS5Methods(t *testing.T) {
	proxy := start(t, &direct{})
	port := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") })
	for _, n := range []int{1, 254, 255} {
		methods := bytes.Repeat([]byte{2}, n)
		methods[n-1] = 0
		a := dialT(t, proxy)
		a.Write(append([]byte{5, byte(n)}, methods...))
		a.Write([]byte("\x05\x01\x00\x03\x09127.0.0.1"))
		var p int
		fmt.Sscan(port, &p)
		a.Write([]byte{byte(p >> 8), byte(p)})
		answer := make([]byte, 12)
		if _, err := io.ReadFull(a.r, answer); err != nil || answer[1] != 0 || answer[3] != 0 {
			t.Errorf("%d methods: %x, %v", n, answer, err)
		}
	}
}

// FuzzHeads: what passes is one head, with one framing, whatever came.
func FuzzHeads(f *testing.F) {
	for _, s := range []string{
		"GET http://a.test/ HTTP/1.1\r\nHost: x\r\n\r\n", "POST http://a.test HTTP/1.1\nHost: x\nContent-Length: 5, 5\n\n",
		"GET http://[::1]:1/| HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", "OPTIONS http://a HTTP/1.0\r\nConnection: a, b\r\na: 1\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if r.head.read(bufio.NewReader(bytes.NewReader(b)), maxHeaderBytes) != nil || r.understand() != nil || r.locate() != nil {
			return
		}
		out := r.append(nil)
		var again request
		rest := bufio.NewReader(bytes.NewReader(out))
		if err := errors.Join(again.head.read(rest, 2*maxHeaderBytes), again.head.parse(true)); err != nil {
			t.Fatalf("%q became %q: %v", b, out, err)
		}
		again.meaning = again.scan()
		if err := again.checkBody(); err != nil || again.hosts != 1 || rest.Buffered() != 0 || again.chunked != r.chunked || again.length != r.length {
			t.Fatalf("%q became %q: %v", b, out, err)
		}
		if bytes.Count(out, []byte("\r\n\r\n")) != 1 || bytes.Contains(bytes.ReplaceAll(out, []byte("\r\n"), nil), []byte("\n")) {
			t.Fatalf("%q became %q", b, out)
		}
	})
}

// FuzzChunked: what is written of a body reads as the same bytes by net/http.
func FuzzChunked(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\n", "5\nhello\n0\nA: b\n\n", "0\r\nContent-Length: 3\r\nX: y\r\n\r\n", "3;x\r\nabc\r\n", "ffffffffffffffff\r\n"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	s := newServer(Options{Handler: &direct{}})
	f.Fuzz(func(t *testing.T, p []byte, strict bool) {
		var b body
		b.reset(bufio.NewReader(bytes.NewReader(p)), true, strict, -1)
		var out bytes.Buffer
		if err := s.copyBody(&out, []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), &b, true, func() {}); err != nil {
			return
		}
		r := bufio.NewReader(&out)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || r.Buffered() != 0 {
			t.Fatalf("%q: %v, %d bytes more", p, err, r.Buffered())
		}
	})
}
