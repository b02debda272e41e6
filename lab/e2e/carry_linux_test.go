package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// way is one kind of upstream, ours or Debian's.
type way struct {
	name   string
	own    *lab.ProxyOptions
	peer   lab.Kind
	udp    bool
	direct bool
}

func ways() []way {
	return []way{
		{name: "direct", direct: true, udp: true},
		{name: "connect", own: &lab.ProxyOptions{Scheme: proxy.HTTP, User: "user", Password: "p@ss:w/rd"}},
		{name: "connect-tls", own: &lab.ProxyOptions{Scheme: proxy.HTTPS, HTTP1Only: true}},
		{name: "h2", own: &lab.ProxyOptions{Scheme: proxy.HTTPS, User: "user", Password: "secret"}},
		{name: "socks5", own: &lab.ProxyOptions{Scheme: proxy.SOCKS5, User: "user", Password: "p@ss:w/rd"}, udp: true},
		{name: "tinyproxy", peer: lab.Tinyproxy},
		{name: "squid", peer: lab.Squid},
		{name: "apache-h2", peer: lab.Apache},
		{name: "dante", peer: lab.Dante, udp: true},
	}
}

// upstream starts the proxy; it returns its configuration and what the router
// may see.
func (w way) upstream(t *testing.T, l *lab.Lab) (toml string, allow []capture.Tuple) {
	t.Helper()
	var url string
	var at netip.AddrPort
	switch {
	case w.direct:
		return "", nil
	case w.own != nil:
		p, err := l.StartProxy(*w.own)
		if err != nil {
			t.Fatal(err)
		}
		url, at = p.URL(), p.Addr()
	default:
		p, err := l.StartPeer(w.peer, 1, 3128)
		if err != nil {
			t.Fatal(err)
		}
		url, at = p.URL, p.Addr
	}
	toml = fmt.Sprintf("[[upstream]]\nname = %q\nurl = %q\n", w.name, url)
	if strings.HasPrefix(url, "https:") {
		toml += fmt.Sprintf("ca = %q\nsni = \"lab.test\"\n", l.CAFile())
	}
	allow = []capture.Tuple{{Proto: "tcp", Dst: at}}
	if w.udp {
		allow = append(allow, capture.Tuple{Proto: "udp", Dst: netip.AddrPortFrom(at.Addr(), 0)})
	}
	return toml, allow
}

// TestCarry sends everything an app may do through every kind of upstream, and
// then looks at the router for whatever went past it.
func TestCarry(t *testing.T) {
	for _, w := range ways() {
		for _, stack := range []string{"kernel", "userspace"} {
			if stack == "userspace" && w.name != "socks5" && w.name != "connect" {
				continue // the stack does not know the upstream: two are enough
			}
			t.Run(w.name+"/"+stack, func(t *testing.T) { carry(t, w, stack) })
		}
	}
}

func carry(t *testing.T, w way, stack string) {
	l := lab.NewTest(t, lab.Options{})
	upstream, allow := w.upstream(t, l)
	cap, err := l.Capture(os.Getenv("ATLANTIC_PCAP"))
	if err != nil {
		t.Fatal(err)
	}
	defer cap.Close()
	if _, err := l.PositiveControl(cap); err != nil {
		t.Fatalf("the capture sees nothing, so it would prove nothing: %v", err)
	}
	cap.Reset()
	s := start(t, l, labDNS+fmt.Sprintf("[tun]\nstack = %q\n", stack)+upstream, "--up")
	st := s.await(api.On)
	if st.TUN.Path != stack {
		t.Errorf("path is %q", st.TUN.Path)
	}
	if !st.TUN.IPv6 {
		t.Error("status says that the TUN has no IPv6")
	}

	for _, c := range []struct {
		name string
		run  func(*testing.T, *lab.Lab, way)
	}{
		{"http", fetches}, {"parallel", parallel}, {"big", big}, {"websocket", websockets},
		{"half-close", halfClose}, {"reset", reset}, {"refused", refused}, {"ipv6", ipv6},
		{"dns", names}, {"udp", udp}, {"ping", ping},
	} {
		flows := s.status().Flows.Total
		t.Run(c.name, func(t *testing.T) { c.run(t, l, w) })
		if n := s.status().Flows.Total - flows; c.name == "dns" && n != 0 {
			t.Errorf("%d lookups count as flows", n)
		}
	}

	after := s.status()
	if after.State != api.On {
		t.Errorf("state is %s (%s) at the end", after.State, after.Cause)
	}
	if !w.direct {
		leaks, err := cap.Leaks(allow...)
		if err != nil {
			t.Error(err)
		}
		for _, p := range leaks {
			t.Errorf("leak: %v", p)
		}
	}
	s.stop()
}

func fetches(t *testing.T, l *lab.Lab, _ way) {
	for _, tc := range []struct {
		url, proto string
		args       []string
	}{
		{"http://example.test/proto", "1.1", nil},
		{"https://example.test/proto", "1.1", []string{"--http1.1"}},
		{"https://example.test/proto", "2", []string{"--http2"}},
		{"http://" + lab.Origin4().String() + "/proto", "1.1", nil},
		{"https://alias.test/proto", "2", nil},
	} {
		f, err := l.Fetch(t.Context(), lab.Client, tc.url, lab.FetchOptions{Args: tc.args})
		if err != nil {
			t.Error(err)
			continue
		}
		if f.Status != 200 || f.Proto != tc.proto {
			t.Errorf("%s: status %d, HTTP/%s", tc.url, f.Status, f.Proto)
		}
	}
}

func parallel(t *testing.T, l *lab.Lab, w way) {
	const downloads, size = 200, 256 << 10
	tr := l.Transport(lab.Client)
	tr.MaxConnsPerHost = 0
	tr.DisableKeepAlives = true
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	errs := make(chan error, downloads)
	for i := range downloads {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			if err := download(ctx, tr, fmt.Sprintf("http://h%d.test/bytes?n=%d&seed=%d", i, size, i), size, uint64(i)); err != nil {
				errs <- fmt.Errorf("download %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	n := 0
	for err := range errs {
		if n++; n <= 5 {
			t.Error(err)
		}
	}
	if n > 5 {
		t.Errorf("and %d more", n-5)
	}
}

func big(t *testing.T, l *lab.Lab, w way) {
	size := int64(256) << 20 // larger than every window and buffer on the way
	if os.Getenv("ATLANTIC_TEST_FULL") != "" {
		size = 1 << 30
	}
	begin := time.Now()
	f, err := l.Fetch(t.Context(), lab.Client, fmt.Sprintf("http://example.test/bytes?n=%d&seed=7", size), lab.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sum := origin.Sum(size, 7)
	if f.Bytes != size || f.SHA256 != sum {
		t.Errorf("download: %d of %d bytes, equal: %v", f.Bytes, size, f.SHA256 == sum)
	}
	down := time.Since(begin)
	begin = time.Now()
	f, err = l.Fetch(t.Context(), lab.Client, "http://example.test/sink", lab.FetchOptions{Body: origin.Bytes(size, 7)})
	if err != nil {
		t.Fatal(err)
	}
	var got origin.SinkResult
	if err := json.Unmarshal(f.Head, &got); err != nil || got.Bytes != size || got.SHA256 != sum {
		t.Errorf("upload: %+v (%v)", got, err)
	}
	t.Logf("%d MiB: down %.1f s, up %.1f s (with hashing on the same cores)", size>>20, down.Seconds(), time.Since(begin).Seconds())
}

func websockets(t *testing.T, l *lab.Lab, _ way) {
	messages := [][]byte{[]byte("hello"), make([]byte, 1<<20), {}}
	for _, u := range []string{"ws://example.test/ws", "wss://example.test/ws"} {
		if err := l.WebSocketEcho(t.Context(), lab.Client, u, messages...); err != nil {
			t.Errorf("%s: %v", u, err)
		}
	}
}

// The server answers only after the client's FIN, so the FIN must travel and
// the way back must stay open.
func halfClose(t *testing.T, l *lab.Lab, w way) {
	if w.peer == lab.Tinyproxy || w.peer == lab.Squid {
		if withoutUs := connectHalfClose(t, l, w); withoutUs == "" {
			t.Logf("%s itself ends both directions at a FIN: shown without us in between", w.peer)
			return
		}
	}
	c := dial(t, l, "tcp", fmt.Sprintf("example.test:%d", origin.PortHalfClose))
	if _, err := io.WriteString(c, "all of it"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || len(b) == 0 {
		t.Errorf("after half-close: %q, %v", b, err)
	}
}

func reset(t *testing.T, l *lab.Lab, w way) {
	c := dial(t, l, "tcp", fmt.Sprintf("example.test:%d", origin.PortReset))
	c.Write([]byte("x"))
	_, err := io.ReadAll(c)
	// A proxy in between may turn a reset into an orderly end; our own and no proxy do not.
	if err == nil && w.peer == "" {
		t.Error("the server's reset reached the app as an orderly end")
	}
}

// A target that is not there looks as if it were not there, at once: refused,
// or reset where the app was let in for its first bytes.
func refused(t *testing.T, l *lab.Lab, w way) {
	for _, host := range []string{"closed.test:443", net.JoinHostPort(lab.Closed4().String(), "443")} {
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		begin := time.Now()
		c, err := l.Dial(ctx, lab.Client, "tcp", host)
		cancel()
		if err == nil {
			err = resetOf(c)
		}
		if took := time.Since(begin); err == nil || took > 5*time.Second || !isRefusal(err) {
			t.Errorf("%s: %v after %v", host, err, took)
		}
	}
}

// resetOf is the error that ends a connection which was accepted before its
// target was asked, nil if it does not end with one. It closes c.
func resetOf(c net.Conn) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(8 * time.Second))
	// A reset is told once, by whichever comes first.
	_, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	return err
}

func isRefusal(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ECONNRESET} {
		if strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

func ipv6(t *testing.T, l *lab.Lab, w way) {
	// Two proxies are bound to an IPv4 address and reach IPv4 targets only: then
	// the app is told so, and not left to wait.
	refuses := w.peer == lab.Dante || w.peer == lab.Tinyproxy
	for _, u := range []string{"http://[" + lab.Origin6().String() + "]/proto", "https://v6.test/proto"} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		f, err := l.Fetch(ctx, lab.Client, u, lab.FetchOptions{Args: []string{"-6", "-g"}})
		waited := ctx.Err() != nil
		cancel()
		if (err == nil && f.Status == 200) == refuses || waited {
			t.Errorf("%s: %v %+v", u, err, f)
		}
	}
}

func names(t *testing.T, l *lab.Lab, w way) {
	fake := netip.MustParsePrefix("198.18.0.0/15")
	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []string{"198.18.0.2:53", "8.8.8.8:53", "10.77.0.1:53", "[2001:db8:f::b:53]:53"} {
			m, err := l.Query(t.Context(), lab.Client, network, server, "some.test", dns.TypeA)
			if err != nil || len(m.Answer) != 1 || !fake.Contains(addrOf(m.Answer[0])) {
				t.Errorf("A by %s at %s: %v, %v", network, server, err, m)
			}
		}
		m, err := l.Query(t.Context(), lab.Client, network, "198.18.0.2:53", "some.test", dns.TypeAAAA)
		if err != nil || len(m.Answer) != 1 {
			t.Errorf("AAAA by %s: %v, %v", network, err, m)
		}
		m, err = l.Query(t.Context(), lab.Client, network, "198.18.0.2:53", "some.test", dns.TypeHTTPS)
		if err != nil || len(m.Answer) != 0 || m.Rcode != dns.RcodeSuccess {
			t.Errorf("HTTPS by %s: %v, %v", network, err, m)
		}
		m, err = l.Query(t.Context(), lab.Client, network, "198.18.0.2:53", "example.test", dns.TypeTXT)
		if err != nil || m.Rcode != dns.RcodeSuccess {
			t.Errorf("TXT by %s: %v, %v", network, err, m)
		}
	}
}

func addrOf(rr dns.RR) netip.Addr {
	a, ok := rr.(*dns.A)
	if !ok {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(a.A.To4())
	return addr
}

func udp(t *testing.T, l *lab.Lab, w way) {
	to := fmt.Sprintf("example.test:%d", origin.PortEcho)
	if !w.udp {
		begin := time.Now()
		_, err := l.UDPEcho(t.Context(), lab.Client, to, []byte("x"))
		if err == nil {
			t.Error("UDP came back although this upstream carries none")
		} else if !isRefusal(err) || time.Since(begin) > 5*time.Second {
			t.Errorf("UDP is not refused at once: %v after %v", err, time.Since(begin))
		}
		return
	}
	for _, size := range []int{1, 100, 1200, 1472, 4000} {
		if w.peer == lab.Dante && size > 1472 {
			continue // its relay buffer is smaller
		}
		for _, host := range []string{to, net.JoinHostPort(lab.Origin4().String(), fmt.Sprint(origin.PortEcho))} {
			var err error
			for range 3 { // UDP may be lost; it may not be lost three times
				if _, err = l.UDPEcho(t.Context(), lab.Client, host, make([]byte, size)); err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("%d bytes to %s: %v", size, host, err)
			}
		}
	}
}

func ping(t *testing.T, l *lab.Lab, _ way) {
	for _, a := range []netip.Addr{lab.Origin4(), lab.Origin6()} {
		if _, err := l.Ping(lab.Client, a); err != nil {
			t.Errorf("ping %s: %v", a, err)
		}
	}
}

func dial(t *testing.T, l *lab.Lab, network, address string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := l.Dial(ctx, lab.Client, network, address)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { c.Close() })
	return c
}

func download(ctx context.Context, tr *http.Transport, url string, size int64, seed uint64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return origin.Check(resp.Body, size, seed)
}

// connectHalfClose does the same through an HTTP proxy alone, from the proxy's
// own side of the router, and returns what came back.
func connectHalfClose(t *testing.T, l *lab.Lab, w way) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := l.Dial(ctx, lab.Internet, "tcp", net.JoinHostPort(lab.Upstream4(1).String(), "3128"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "CONNECT example.test:%d HTTP/1.1\r\nHost: example.test:%[1]d\r\n\r\n", origin.PortHalfClose)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT without us: %v %v", resp, err)
	}
	io.WriteString(c, "all of it")
	c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(r)
	return string(b)
}
