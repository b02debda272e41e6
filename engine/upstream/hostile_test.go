package upstream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestMisbehavingProxies: every wrong answer ends at once with an error that
// says what to do; only silence takes time, which is bounded elsewhere.
func TestMisbehavingProxies(t *testing.T) {
	say := func(s string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			c.Read(make([]byte, 1024))
			io.WriteString(c, s)
			io.Copy(io.Discard, c)
		}
	}
	cut := func(s string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			c.Read(make([]byte, 1024))
			io.WriteString(c, s)
			c.CloseWrite() // a FIN, and no reset to what comes later
			io.Copy(io.Discard, c)
		}
	}
	endless := func(start, piece string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			c.Read(make([]byte, 1024))
			io.WriteString(c, start)
			for range 1 << 24 { // gigabytes, if anybody takes them
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
			}
		}
	}
	reset := func(c *net.TCPConn) { c.Read(make([]byte, 1024)); c.SetLinger(0) }
	for name, c := range map[string]struct {
		scheme string
		handle func(*net.TCPConn)
		kind   Kind
		text   string // in error or hint
	}{
		"reset":            {"http", reset, Refused, "reset"},
		"fin":              {"http", cut(""), Protocol, "closed the connection"},
		"fin mid-reply":    {"http", cut("HTTP/1.1 200 OK\r\nA: b"), Protocol, "ended after"},
		"html":             {"http", say("<html><body>Welcome to my home page</body></html>"), Protocol, "web server"},
		"http html":        {"http", say("HTTP/1.1 418 x\r\nContent-Type: text/html\r\n\r\n<html>"), Protocol, "web server"},
		"page":             {"http", say("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 9\r\n\r\n<html>hi!"), Protocol, "web page"},
		"page in chunks":   {"http", say("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n<html>hi!\r\n0\r\n\r\n"), Protocol, "web server"},
		"400":              {"http", say("HTTP/1.1 400 Bad Request\r\n\r\n"), Protocol, "web server"},
		"404":              {"http", say("HTTP/1.1 404 Not Found\r\n\r\n"), Protocol, "web server"},
		"405":              {"http", say("HTTP/1.1 405 Method Not Allowed\r\n\r\n"), Protocol, "web server"},
		"407":              {"http", say("HTTP/1.1 407 Nope\r\nX-Error-Description: who are you\r\n\r\n"), Auth, "who are you"},
		"407 without":      {"http", say("HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm=\"a, Basic b\", nonce=\"x\"\r\nProxy-Authenticate: NTLM\r\n\r\n"), Auth, "Digest and NTLM alone"},
		"407 negotiate":    {"http", say("HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate, NTLM\r\n\r\n"), Auth, "only Basic is spoken here"},
		"407 with Basic":   {"http", say("HTTP/1.1 407 No\r\nProxy-Authenticate: Digest realm=\"a\", basic realm=\"b\"\r\n\r\n"), Auth, "check user and password"},
		"302":              {"http", say("HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n"), Protocol, "captive"},
		"511":              {"http", say("HTTP/1.1 511 Network Authentication Required\r\n\r\n"), Protocol, "captive"},
		"429":              {"http", say("HTTP/1.1 429 Slow Down\r\n\r\n"), Refused, "limits"},
		"502 message":      {"http", say("HTTP/1.1 502 Bad\r\nx-brd-err-msg: peer\x1b[31m gone\r\n\r\n"), Target, "peer[31m gone"},
		"403":              {"http", say("HTTP/1.1 403 No\r\n\r\n"), Target, "403"},
		"504":              {"http", say("HTTP/1.1 504 Late\r\n\r\n"), Target, "504"},
		"proxy-status":     {"http", say("HTTP/1.1 400 x\r\nProxy-Status: p; error=dns_error\r\n\r\n"), Target, "dns_error"},
		"101":              {"http", say("HTTP/1.1 101 Switching\r\n\r\n"), Protocol, "101"},
		"1xx flood":        {"http", endless("", "HTTP/1.1 100 Continue\r\n\r\n"), Protocol, "16 KiB"},
		"1 GB header":      {"http", endless("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("x", 4096)), Protocol, "16 KiB"},
		"status garbage":   {"http", say("HTTP/1.1 2x0 OK\r\n\r\n"), Protocol, "status line"},
		"tls port":         {"http", say("\x15\x03\x01\x00\x02\x02\x46"), Protocol, "https://"},
		"socks port":       {"http", say("\x05\xff"), Protocol, "socks5://"},
		"socks: http":      {"socks5", say("HTTP/1.1 400 Bad Request\r\n\r\n"), Protocol, "http://"},
		"socks: version":   {"socks5", say("\x04\x00"), Protocol, "version 4"},
		"socks: fin":       {"socks5", cut(""), Protocol, "closed"},
		"socks: 1 byte":    {"socks5", cut("\x05"), Protocol, "closed"},
		"socks: method":    {"socks5", say("\x05\x02"), Protocol, "not offered"},
		"socks: ff":        {"socks5", say("\x05\xff"), Auth, "user and password"},
		"socks: reply v4":  {"socks5", say("\x05\x00\x04\x00"), Protocol, "version 4"},
		"socks: atyp":      {"socks5", say("\x05\x00\x05\x00\x00\x09"), Protocol, "address type 9"},
		"socks: cut":       {"socks5", cut("\x05\x00\x05\x00\x00\x01\x7f"), Protocol, "closed"},
		"socks: cut name":  {"socks5", cut("\x05\x00\x05\x00\x00\x03\xffabc"), Protocol, "closed"},
		"socks: refused":   {"socks5", cut("\x05\x00\x05\x05"), Target, "refused"},
		"socks: forbidden": {"socks5", say("\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"), Target, "rules"},
		"socks: code 99":   {"socks5", say("\x05\x00\x05\x63"), Protocol, "99"},
		"socks: reset":     {"socks5", reset, Refused, "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			u := open(t, c.scheme+"://"+serve(t, c.handle).String(), nil, Options{})
			begin := time.Now()
			conn, err := u.DialStream(within(t, 3*time.Second), flow.Target{Name: "x.example", Port: 443}, nil)
			if err == nil {
				conn.Close()
			}
			var e *Error
			if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(e.Error()+" "+e.Hint, c.text) {
				t.Fatalf("%v (kind %v, want %v)", err, e, c.kind)
			}
			if strings.ContainsRune(e.Error(), 0x1b) || len(e.Error()) > 400 {
				t.Errorf("unclean error %q", e.Error())
			}
			if d := time.Since(begin); d > 8*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestReplyNoise: what a 2xx should not say, and some proxies do, is ignored as
// long as it does not add up to a page (RFC 9110 section 9.3.6).
func TestReplyNoise(t *testing.T) {
	for _, fields := range []string{"Content-Length: 0", "Content-Length: 9", "Transfer-Encoding: chunked",
		"Content-Type: text/html", "Content-Type: text/html\r\nContent-Length: 00", "Content-Type: text/plain\r\nContent-Length: 9"} {
		addr := serve(t, func(c *net.TCPConn) {
			c.Read(make([]byte, 1024))
			io.WriteString(c, "HTTP/1.1 200 OK\r\n"+fields+"\r\n\r\nSSH-2.0")
		})
		c, err := open(t, "http://"+addr.String(), nil, Options{}).DialStream(within(t, 3*time.Second), flow.Target{Name: "x", Port: 22}, nil)
		if err != nil {
			t.Errorf("%q: %v", fields, err)
			continue
		}
		b := make([]byte, 7)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "SSH-2.0" {
			t.Errorf("%q: then %q, %v", fields, b, err)
		}
		c.Close()
	}
}

// TestTrickle: one byte now and then does not keep a handshake alive beyond
// its deadline.
func TestTrickle(t *testing.T) {
	addr := serve(t, func(c *net.TCPConn) {
		c.Read(make([]byte, 1024))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nX: ")
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	u := open(t, "http://"+addr.String(), nil, Options{})
	begin := time.Now()
	_, err := u.DialStream(within(t, 300*time.Millisecond), flow.Target{Name: "x", Port: 1}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Kind != Timeout || e.Reason != flow.TimedOut || time.Since(begin) > 5*time.Second {
		t.Fatalf("%v after %v", err, time.Since(begin))
	}
}

// FuzzConnectReply: what a proxy answers never takes more than the head, and
// both ways of reading it agree.
func FuzzConnectReply(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\n\r\nrest", "HTTP/1.0 200\n\nrest", "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\nSSH-2.0",
		"HTTP/1.1 407 x\r\nX-Error-Description: y\r\n\r\n", "HTTP/1.1 200 \n\r\n\r\n", "\x05\xff", "HTTP/1.1 200 OK\r\n\n\r\nz",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := &memory{in: bytes.NewReader(answer)}
		err := readReply(c)
		rest, _ := io.ReadAll(c)
		peeked := &peekable{bytes.NewReader(answer)}
		if other := readReply(peeked); (other == nil) != (err == nil) || err == nil && peeked.Len() != len(rest) {
			t.Fatalf("read: %v, %d left; peeked at: %v, %d left", err, len(rest), other, peeked.Len())
		}
		if err != nil {
			var e *Error
			if !errors.As(talkFault("x", err), &e) || e.Kind == 0 || e.Reason == 0 {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		head := answer[:len(answer)-len(rest)]
		if headEnd(head, 0) < 0 || len(head) > maxReplyBytes {
			t.Fatalf("accepted %q", head)
		}
		// The last head ends exactly where reading stopped.
		at := 0
		for at < len(head) {
			n := headEnd(head[at:], 0)
			if n < 0 {
				t.Fatalf("read beyond the head: %q", head[at:])
			}
			at += n
		}
	})
}

// memory is a connection to a server that has said all it will say.
type memory struct {
	net.Conn
	in io.Reader
}

func (m *memory) Read(p []byte) (int, error)  { return m.in.Read(p) }
func (m *memory) Write(p []byte) (int, error) { return len(p), nil }

// peekable is one that can be peeked at.
type peekable struct{ *bytes.Reader }

func (*peekable) canPeek() bool { return true }

func (p *peekable) peek(b []byte) (int, error) {
	n, err := p.ReadAt(b, p.Size()-int64(p.Len()))
	if n > 0 {
		err = nil
	}
	return n, err
}

func FuzzSOCKSReply(f *testing.F) {
	f.Add([]byte("\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50rest"))
	f.Add([]byte("\x05\x00\x00\x03\x03abc\x00\x50"))
	f.Add([]byte("\x05\x05"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := readSOCKSReply(r)
		peeked := &peekable{bytes.NewReader(b)}
		if other, perr := peekSOCKSReply(peeked); (perr == nil) != (err == nil) || err == nil && (other != got || peeked.Len() != r.Len()) {
			t.Fatalf("read: %v, %v; peeked at: %v, %v", got, err, other, perr)
		}
		if err != nil {
			return
		}
		if again := appendSOCKSAddr([]byte{5, 0, b[2]}, got); got.Name != "" && !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("%x read as %v", b, got)
		}
	})
}

func FuzzSOCKSDatagram(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x50payload"))
	f.Add([]byte("\x00\x00\x00\x03\x03abc\x00\x50payload"))
	f.Add([]byte("\x00\x00\x01\x01\x7f\x00\x00\x01\x00\x50x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, payload, ok := parseSOCKSDatagram(b)
		if !ok {
			return
		}
		if !bytes.HasSuffix(b, payload) || len(b)-len(payload) > maxSOCKSHeaderBytes || b[2] != 0 {
			t.Fatalf("%x → %v %x", b, got, payload)
		}
	})
}
