package upstream

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const getHead = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"

// helloBytes is a real ClientHello.
func helloBytes(t testing.TB) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		_ = tls.Client(b, &tls.Config{ServerName: "a.example"}).Handshake()
		b.Close()
	}()
	buf := make([]byte, 4096)
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// habit is what a proxy does with early bytes.
type habit int

const (
	carriesEarly habit = iota
	dropsEarly         // forgets what it read beyond the request
	hangsUp            // closes without an answer
	says400
	cutsEarly // passes on half of it
)

// habitual is a CONNECT proxy in front of one server.
func habitual(h *atomic.Int32, server string, early *atomic.Int32) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		b := make([]byte, 8192)
		n, err := c.Read(b)
		if err != nil {
			return
		}
		_, rest, _ := bytes.Cut(b[:n], []byte("\r\n\r\n"))
		if len(rest) > 0 {
			early.Add(1)
			switch habit(h.Load()) {
			case dropsEarly:
				rest = nil
			case cutsEarly:
				rest = rest[:len(rest)/2]
			case hangsUp:
				return
			case says400:
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
				return
			}
		}
		out, err := net.Dial("tcp", server)
		if err != nil {
			_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		splitRelay(c, out.(*net.TCPConn), io.MultiReader(bytes.NewReader(rest), c))
	}
}

// webServer answers GET with 200 and the request's path.
func webServer(t testing.TB) string {
	t.Helper()
	return serve(t, func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"+r.Host[:5])
		_, _ = io.Copy(io.Discard, c)
	}).String()
}

// get does what an app would, and reports what it took.
func get(t *testing.T, u *Upstream) Trace {
	t.Helper()
	return getFrom(t, u, flow.Target{Name: "a.example", Port: 80})
}

func getFrom(t *testing.T, u *Upstream, target flow.Target) Trace {
	t.Helper()
	var tr Trace
	c, err := u.DialStream(WithTrace(within(t, 14*time.Second), &tr), target, []byte(getHead))
	if err != nil {
		t.Fatalf("the app notices: %v", err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("the app notices: %v", err)
	}
	defer r.Body.Close()
	if body, err := io.ReadAll(r.Body); r.StatusCode != 200 || string(body) != "a.exa" {
		t.Fatalf("the app notices: %d %q %v", r.StatusCode, body, err)
	}
	return tr
}

// settles waits for the verdict, and the end of the probe that led to it.
func settles(t *testing.T, u *Upstream, want Verdict) {
	t.Helper()
	eventually(t, fmt.Sprintf("no verdict %v", want), func() bool { return u.Early() == want && !u.prover.probing.Load() })
}

func TestVerdictOnEarlyData(t *testing.T) {
	for name, c := range map[string]struct {
		habit habit
		want  Verdict
	}{
		"carries": {carriesEarly, EarlyCarries}, "drops": {dropsEarly, EarlyRefuses}, "hangs up": {hangsUp, EarlyRefuses},
		"400": {says400, EarlyRefuses}, "cuts": {cutsEarly, EarlyRefuses},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h, early, told atomic.Int32
			h.Store(int32(c.habit))
			u := open(t, "http://"+serve(t, habitual(&h, webServer(t), &early)).String(), nil,
				Options{EarlyChanged: func(*Upstream) { told.Add(1) }})
			target := flow.Target{Name: "a.example", Port: 80}
			if u.WantsEarly(target) {
				t.Error("wants early before anything has worked")
			}
			u.stats.alive()
			if !u.WantsEarly(target) || u.WantsEarly(flow.Target{Addr: netip.IPv6Loopback(), Port: 80}) {
				t.Error("does not want to know, or for IPv6 without a name")
			}
			if tr := get(t, u); tr.Early {
				t.Errorf("the first flow found out itself: %+v", tr)
			}
			settles(t, u, c.want)
			if told.Load() != 1 || u.WantsEarly(target) != (c.want == EarlyCarries) {
				t.Fatalf("%v, told %d times", u.Early(), told.Load())
			}
			n := early.Load()
			tr := get(t, u)
			if tr.Early != (c.want == EarlyCarries) || (early.Load() > n) != tr.Early || tr.Early && (!tr.Warm || tr.Dial != 0) {
				t.Errorf("the next flow: %+v", tr)
			}
			// What may not be repeated never leaves before the answer.
			n = early.Load()
			d, err := u.DialStream(within(t, 5*time.Second), target, []byte("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n"))
			if err != nil {
				t.Fatal(err)
			}
			d.Close()
			if early.Load() != n {
				t.Error("a POST left early")
			}
		})
	}
}

// TestVerdictChanges: a proxy that stops carrying early data is found out, and
// no app notices.
func TestVerdictChanges(t *testing.T) {
	var h, early atomic.Int32
	u := open(t, "http://"+serve(t, habitual(&h, webServer(t), &early)).String(), nil, Options{})
	u.SetEarly(EarlyCarries)
	get(t, u)
	settles(t, u, EarlyCarries)
	h.Store(int32(hangsUp))
	for i := 0; u.Early() == EarlyCarries; i++ {
		if i > auditEvery+maxDisproved+2 {
			t.Fatal("not found out")
		}
		get(t, u)
		eventually(t, "no end of a probe", func() bool { return !u.prover.probing.Load() })
	}
	u.prover.notYet.Store(0)
	get(t, u)
	settles(t, u, EarlyRefuses)
	h.Store(int32(carriesEarly)) // hours later
	u.prover.notYet.Store(0)
	get(t, u)
	settles(t, u, EarlyCarries)
}

// TestEarlyRefusedTarget: the error is the same in both orders, and says
// nothing about the proxy.
func TestEarlyRefusedTarget(t *testing.T) {
	var h, early atomic.Int32
	u := open(t, "http://"+serve(t, habitual(&h, "127.0.0.1:1", &early)).String(), nil, Options{})
	for _, v := range []Verdict{EarlyUnknown, EarlyCarries, EarlyRefuses} {
		u.SetEarly(v)
		_, err := u.DialStream(within(t, 5*time.Second), flow.Target{Name: "a.example", Port: 80}, []byte(getHead))
		var e *Error
		if !errors.As(err, &e) || e.Kind != Target || e.Reason != flow.Refused || e.Status != 502 || u.Early() != v {
			t.Errorf("%v: %v, now %v", v, err, u.Early())
		}
	}
}

// TestNoRequestTwice: a target that takes its time gets each request once, with
// early data and without, unknown or known, and its answer is not lost. It says
// nothing about the proxy.
func TestNoRequestTwice(t *testing.T) {
	for _, v := range []Verdict{EarlyUnknown, EarlyCarries, EarlyRefuses} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			var h, early, requests atomic.Int32
			server := serve(t, func(c *net.TCPConn) {
				r, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				if r.Method == "GET" {
					requests.Add(1)
				}
				time.Sleep(2500 * time.Millisecond)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na.exa")
			}).String()
			u := open(t, "http://"+serve(t, habitual(&h, server, &early)).String(), nil, Options{})
			u.SetEarly(v)
			get(t, u)
			if n := requests.Load(); n != 1 {
				t.Errorf("the request reached the target %d times", n)
			}
			if v == EarlyUnknown {
				v = EarlyCarries
			}
			settles(t, u, v)
		})
	}
}

func TestSigns(t *testing.T) {
	for b, want := range map[string]sign{
		"\x16\x03\x03\x00\x7a\x02\x00": proof, "\x16\x03": proof, "HTTP/1.1 200 OK": proof, "HTTP/1.0 301 x": proof,
		"\x15\x03\x03\x00\x02\x02\x28": garbled, "HTTP/1.1 400 Bad": garbled, "HTTP/1.1 408 Requ": garbled,
		"HTTP/1.1": other, "SSH-2.0-OpenSSH": other, "\x16\x03\x03\x00\x7a\x01\x00": other, strings.Repeat("x", 16): other,
	} {
		if got := signOf([]byte(b)); got != want {
			t.Errorf("%q is %d, not %d", b, got, want)
		}
	}
}

// TestEarlyOff: what an earlier run found out does not turn on what is off.
func TestEarlyOff(t *testing.T) {
	u := open(t, "socks5://127.0.0.1:1", func(s *Spec) { s.NoEarly = true }, Options{})
	u.SetEarly(EarlyCarries)
	if u.Early() != EarlyUnknown || u.WantsEarly(flow.Target{Name: "x.example", Port: 443}) {
		t.Errorf("%v", u.Early())
	}
}
