package listener

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/websocket"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// direct is a flow.Handler that dials targets itself; every name is this
// machine, except "refused.test" and the like, which are rejected.
type direct struct {
	mu     sync.Mutex
	flows  []flow.Flow // guarded by mu
	raw    atomic.Int64
	reject map[string]flow.Reason
}

func (d *direct) note(f flow.Flow) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flows = append(d.flows, f)
}

func (d *direct) last() flow.Flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.flows) == 0 {
		return flow.Flow{}
	}
	return d.flows[len(d.flows)-1]
}

func (d *direct) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flows)
}

func (d *direct) HandleStream(ctx context.Context, f flow.Flow, p flow.Pending) {
	d.note(f)
	if reason, ok := d.reject[f.Target.Name]; ok {
		p.Reject(reason)
		return
	}
	address := f.Target.String()
	if f.Target.Name != "" {
		address = fmt.Sprintf("127.0.0.1:%d", f.Target.Port)
	}
	up, err := net.Dial("tcp", address)
	if err != nil {
		p.Reject(flow.Refused)
		return
	}
	defer up.Close()
	app, err := p.Accept()
	if err != nil {
		return
	}
	defer app.Close()
	read, socket := flow.Unwrap(app)
	if _, ok := socket.(*net.TCPConn); ok {
		d.raw.Add(1)
		up.Write(read)
		app = socket
	}
	stop := context.AfterFunc(ctx, func() { app.Close(); up.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, app)
		up.(*net.TCPConn).CloseWrite()
	}()
	if _, err := io.Copy(app, up); err != nil {
		app.(interface{ SetLinger(int) error }).SetLinger(0)
		app.Close()
	}
	app.CloseWrite()
	<-done
}

func (d *direct) HandlePackets(ctx context.Context, f flow.Flow, app net.PacketConn) {
	d.note(f)
	stop := context.AfterFunc(ctx, func() { app.Close() })
	defer stop()
	defer app.Close()
	buf := make([]byte, 65535)
	for {
		n, to, err := app.ReadFrom(buf)
		if err != nil {
			return
		}
		if string(buf[:n]) == "end" {
			return
		}
		app.WriteTo(buf[:n], to)
	}
}

// start runs a Listener on a free port.
func start(t *testing.T, h flow.Handler) (address string) {
	return startWith(t, Options{Handler: h})
}

func startWith(t *testing.T, o Options) (address string) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	o.Address, o.Log = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	l, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("run does not end")
		}
	})
	return l.Addr().String()
}

func origin(t *testing.T, h http.HandlerFunc) (port string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	_, port, _ = net.SplitHostPort(s.Listener.Addr().String())
	return port
}

func TestListenInsistsOnLoopback(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":7890", "[::]:0", "192.0.2.1:80", "example.com:80", "127.0.0.1", "127.0.0.1:99999"} {
		l, err := Listen(Options{Address: address, Handler: &direct{}, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			l.Close()
			t.Errorf("%s: bound", address)
		} else if !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%s: %v; want an error that tells what to do", address, err)
		}
	}
	taken, err := Listen(Options{Address: "localhost:0", Handler: &direct{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := Listen(Options{Address: taken.Addr().String(), Handler: &direct{}, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taken port: %v", err)
	}
}

func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("SKIPPED: no curl")
	}
	d := &direct{}
	proxy := start(t, d)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			io.Copy(w, r.Body)
			return
		}
		w.Write(body)
	})
	tests := []struct {
		name string
		args []string
		in   flow.Inbound
		host string
	}{
		{"http", []string{"-x", "http://" + proxy, "http://Origin.test.:" + port}, flow.HTTP, "origin.test"},
		{"connect", []string{"-p", "-x", "http://" + proxy, "http://origin.test:" + port}, flow.HTTP, "origin.test"},
		{"socks5h", []string{"--socks5-hostname", proxy, "http://origin.test:" + port}, flow.SOCKS5, "origin.test"},
		{"socks5", []string{"--socks5", proxy, "http://127.0.0.1:" + port}, flow.SOCKS5, "127.0.0.1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, err := exec.Command(curl, append([]string{"-sS", "-m", "5"}, test.args...)...).Output()
			if err != nil || !bytes.Equal(out, body) {
				t.Errorf("curl: %v, %d bytes", err, len(out))
			}
			f := d.last()
			if f.Inbound != test.in || f.Target.Host() != test.host || f.Network != flow.TCP || !f.Src.IsValid() || fmt.Sprint(f.Target.Port) != port {
				t.Errorf("flow %+v", f)
			}
		})
	}
	if d.raw.Load() != 3 { // plain HTTP is ours to read
		t.Errorf("%d of 3 flows had a *net.TCPConn", d.raw.Load())
	}
}

func TestGoClients(t *testing.T) {
	d := &direct{}
	proxy := start(t, d)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	defer secure.Close()
	for _, scheme := range []string{"http", "socks5", "socks5h"} {
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			Proxy:             http.ProxyURL(&url.URL{Scheme: scheme, Host: proxy}),
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the test's own server
			DisableKeepAlives: true,
		}}
		sent := bytes.Repeat([]byte(scheme), 100_000)
		resp, err := client.Post(secure.URL, "", bytes.NewReader(sent))
		if err != nil {
			t.Errorf("%s: %v", scheme, err)
			continue
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%s: %d bytes, %v", scheme, len(got), err)
		}
	}
}

func TestPlainHTTPKeepsAliveAndStripsHopByHop(t *testing.T) {
	d := &direct{}
	proxy := start(t, d)
	var seen http.Header
	port := origin(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("X-Mine", "1")
		w.Header().Set("Connection", "X-Mine")
		io.WriteString(w, "ok")
	})
	for range 3 { // three connections of the app, one to the origin
		conn, err := net.Dial("tcp", proxy)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET http://origin.test:%s/ HTTP/1.1\r\nHost: other.test\r\nProxy-Authorization: Basic c2VjcmV0\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n", port)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != 200 || resp.Header.Get("Keep-Alive") != "" || resp.Header.Get("X-Mine") != "" {
			t.Errorf("response %d %v", resp.StatusCode, resp.Header)
		}
		conn.Close()
	}
	if d.count() != 1 {
		t.Errorf("%d flows for three requests to one target", d.count())
	}
	if seen.Get("Proxy-Authorization") != "" || seen.Get("X-Hop") != "" || seen.Get("X-End") != "2" {
		t.Errorf("the origin saw %v", seen)
	}
}

func TestWebSocketOverPlainHTTP(t *testing.T) {
	proxy := start(t, &direct{})
	server := httptest.NewServer(websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	conn, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	config, _ := websocket.NewConfig("ws://"+host+"/", "http://"+host)
	ws, err := websocket.NewClient(config, &absoluteForm{Conn: conn, host: host})
	if err != nil {
		t.Fatal(err)
	}
	ws.Write([]byte("hello"))
	buf := make([]byte, 10)
	if n, err := ws.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}

// absoluteForm makes the first request line one for a proxy.
type absoluteForm struct {
	net.Conn
	host string
	done bool
}

func (c *absoluteForm) Write(p []byte) (int, error) {
	if c.done {
		return c.Conn.Write(p)
	}
	c.done = true
	_, err := c.Conn.Write(bytes.Replace(p, []byte("GET /"), []byte("GET http://"+c.host+"/"), 1))
	return len(p), err
}

// talk sends request and returns all that comes back.
func talk(t *testing.T, proxy string, request []byte) string {
	t.Helper()
	conn, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * time.Second))
	conn.Write(request)
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q: %v", request, err)
	}
	return string(answer)
}

func TestRefusals(t *testing.T) {
	d := &direct{reject: map[string]flow.Reason{
		"refused.test": flow.Refused, "gone.test": flow.Unreachable, "slow.test": flow.TimedOut, "no.test": flow.Forbidden,
	}}
	proxy := start(t, d)
	socks := func(name string) []byte {
		return append(append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(name))}, name...), 0, 80)
	}
	tests := []struct{ name, request, want string }{
		{"connect refused", "CONNECT refused.test:443 HTTP/1.1\r\nHost: refused.test:443\r\n\r\n", "HTTP/1.1 502 Bad Gateway\r\n"},
		{"connect unreachable", "CONNECT gone.test:443 HTTP/1.1\r\n\r\n", "gone.test:443: unreachable"},
		{"connect timeout", "CONNECT slow.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 504 Gateway Timeout\r\n"},
		{"connect forbidden", "CONNECT no.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
		{"connect port 0", "CONNECT a.test:0 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		{"connect without port", "CONNECT a.test HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		{"connect with body", "CONNECT a.test:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 400 Bad Request\r\n"},
		{"connect, endless head", "CONNECT a.test:1 HTTP/1.1\r\nX: " + strings.Repeat("x", maxHeaderBytes), "HTTP/1.1 431"},
		{"get refused", "GET http://refused.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 502 Bad Gateway\r\n"},
		{"get forbidden", "GET http://no.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
		{"get timeout", "GET http://slow.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 504 Gateway Timeout\r\n"},
		{"get https", "GET https://a.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "use CONNECT"},
		{"browser", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "this is a proxy"},
		{"smuggling", "POST http://a.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "HTTP/1.1 400 Bad Request\r\n"},
		{"huge header", "GET http://a.test/ HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxHeaderBytes) + "\r\n\r\n", "HTTP/1.1 431"},
		{"socks4", "\x04\x01\x00\x50\x7f\x00\x00\x01\x00", "\x00\x5b"},
		{"tls", "\x16\x03\x01\x00\x05hello", ""},
		{"socks5 password only", "\x05\x01\x02", "\x05\xff"},
		{"socks5 refused", string(socks("refused.test")), "\x05\x00\x05\x05"},
		{"socks5 unreachable", string(socks("gone.test")), "\x05\x00\x05\x04"},
		{"socks5 timeout", string(socks("slow.test")), "\x05\x00\x05\x06"},
		{"socks5 forbidden", string(socks("NO.test.")), "\x05\x00\x05\x02"},
		{"socks5 bad name", string(socks("a b")), "\x05\x00\x05\x01"},
		{"socks5 bind", "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "\x05\x00\x05\x07"},
		{"socks5 address type", "\x05\x01\x00\x05\x01\x00\x09", "\x05\x00\x05\x08"},
		{"socks5 port 0", "\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x00", "\x05\x00\x05\x01"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := talk(t, proxy, []byte(test.request))
			if !strings.Contains(got, test.want) || (test.want == "" && got != "") {
				t.Errorf("got %q, want %q in it", got, test.want)
			}
		})
	}
}

func TestEarlyBytesAreNotLost(t *testing.T) {
	d := &direct{}
	proxy := start(t, d)
	port := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") })
	request := fmt.Sprintf("CONNECT 127.0.0.1:%s HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", port)
	if got := talk(t, proxy, []byte(request)); !strings.HasPrefix(got, "HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK") || !strings.HasSuffix(got, "here") {
		t.Errorf("got %q", got)
	}
	if d.raw.Load() != 1 {
		t.Error("the early bytes hide the socket")
	}
	if f := d.last(); f.Target.Addr != netip.MustParseAddr("127.0.0.1") || f.Target.Name != "" || f.Dst != f.Target.AddrPort() {
		t.Errorf("flow %+v", f)
	}
	// The same after another request on the connection.
	request = fmt.Sprintf("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n%s", port, request)
	if got := talk(t, proxy, []byte(request)); strings.Count(got, "here") != 2 {
		t.Errorf("got %q", got)
	}
}
