package route

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// outcome is what one end of a connection has come to see.
func outcome(got int, err error) string {
	for _, e := range []error{syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, e) {
			err = e
		}
	}
	if err == nil {
		err = io.EOF
	}
	return fmt.Sprintf("%d bytes, %v", got, err)
}

// readAll reads to the end.
func readAll(c *net.TCPConn) string {
	n, err := io.Copy(io.Discard, c)
	return outcome(int(n), err)
}

// ends are the two apps of a scenario, each on a goroutine of its own; what
// they return is compared.
type ends struct {
	name        string
	app, server func(c *net.TCPConn, other <-chan struct{}) string
}

// answer is a refusal that a server sends in full, longer than one segment.
var answer = append([]byte("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n"), bytes.Repeat([]byte("x"), 20<<10)...)

// upload writes until that fails.
func upload(c *net.TCPConn) {
	b := make([]byte, 16<<10)
	for range 4096 {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func scenarios() []ends {
	read1 := func(c *net.TCPConn) { _, _ = io.ReadFull(c, make([]byte, 1)) }
	return []ends{
		{"answered and closed while the app uploads",
			func(c *net.TCPConn, _ <-chan struct{}) string { upload(c); return readAll(c) },
			func(c *net.TCPConn, _ <-chan struct{}) string {
				read1(c)
				_, _ = c.Write(answer)
				_ = c.Close() // what the app has sent is unread: the kernel resets
				return ""
			}},
		{"answered, half-closed and then closed while the app uploads",
			func(c *net.TCPConn, _ <-chan struct{}) string { upload(c); return readAll(c) },
			func(c *net.TCPConn, _ <-chan struct{}) string {
				read1(c)
				_, _ = c.Write(answer)
				_ = c.CloseWrite()
				time.Sleep(10 * time.Millisecond)
				_ = c.Close()
				return ""
			}},
		{"said and closed with an answer unread",
			func(c *net.TCPConn, _ <-chan struct{}) string {
				read1(c) // the rest of what the server says stays unread
				_, _ = c.Write(answer)
				_ = c.Close()
				return ""
			},
			func(c *net.TCPConn, other <-chan struct{}) string {
				_, _ = c.Write([]byte("hello"))
				<-other
				time.Sleep(50 * time.Millisecond) // a busy server comes to reading late
				n, _ := io.Copy(io.Discard, c)
				return outcome(int(n), nil)
			}},
		{"said and reset",
			func(c *net.TCPConn, _ <-chan struct{}) string {
				_, _ = c.Write(answer)
				read1(c) // all of it has arrived
				_ = c.SetLinger(0)
				_ = c.Close()
				return ""
			},
			func(c *net.TCPConn, other <-chan struct{}) string {
				n, _ := io.ReadFull(c, make([]byte, len(answer)))
				_, _ = c.Write([]byte("x"))
				<-other
				m, err := io.Copy(io.Discard, c)
				return outcome(n+int(m), err)
			}},
		{"the server resets an app that reads",
			func(c *net.TCPConn, _ <-chan struct{}) string { _, _ = c.Write([]byte("x")); return readAll(c) },
			func(c *net.TCPConn, _ <-chan struct{}) string {
				read1(c)
				_ = c.SetLinger(0)
				_ = c.Close()
				return ""
			}},
		{"the app goes away while the server speaks",
			func(c *net.TCPConn, _ <-chan struct{}) string { read1(c); _ = c.Close(); return "" },
			func(c *net.TCPConn, _ <-chan struct{}) string {
				begin := time.Now()
				upload(c)
				return fmt.Sprint("told within 2 s: ", time.Since(begin) < 2*time.Second)
			}},
		{"data after the other's end, both ways in turn",
			func(c *net.TCPConn, other <-chan struct{}) string {
				_ = c.CloseWrite()
				return readAll(c)
			},
			func(c *net.TCPConn, other <-chan struct{}) string {
				first := readAll(c)
				time.Sleep(10 * time.Millisecond)
				_, _ = c.Write(answer)
				return first
			}},
		{"data after the server's end",
			func(c *net.TCPConn, other <-chan struct{}) string {
				first := readAll(c)
				time.Sleep(10 * time.Millisecond)
				_, _ = c.Write(answer)
				return first
			},
			func(c *net.TCPConn, other <-chan struct{}) string {
				_ = c.CloseWrite()
				return readAll(c)
			}},
		{"the app ends its half and goes away; the server speaks later",
			func(c *net.TCPConn, other <-chan struct{}) string {
				_ = c.CloseWrite()
				_ = c.Close()
				return ""
			},
			func(c *net.TCPConn, other <-chan struct{}) string {
				first := readAll(c)
				<-other
				upload(c)
				_, err := c.Write([]byte("x"))
				return first + ", then failing: " + fmt.Sprint(err != nil)
			}},
	}
}

// play runs both ends and returns what they saw.
func play(t *testing.T, s ends, app, server *net.TCPConn) (string, string) {
	t.Helper()
	appDone, serverDone := make(chan struct{}), make(chan struct{})
	var a, b string
	for _, c := range []*net.TCPConn{app, server} {
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	}
	go func() { defer close(appDone); a = s.app(app, serverDone); _ = app.Close() }()
	go func() { defer close(serverDone); b = s.server(server, appDone); _ = server.Close() }()
	<-appDone
	<-serverDone
	return a, b
}

// TestAlike: the ends of a connection see the same with us in between as
// without us.
func TestAlike(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			app, server := pair(t)
			wantApp, wantServer := play(t, s, app, server)
			h := handler(t, nil)
			for range 10 {
				far := make(chan *net.TCPConn, 1)
				over := make(chan struct{})
				target := serve(t, func(c *net.TCPConn) { far <- c; <-over })
				app, in := pair(t)
				done := carry(h, t.Context(), tcpFlow(flow.TargetOf(target)), &pending{conn: in})
				gotApp, gotServer := play(t, s, app, <-far)
				close(over)
				if gotApp != wantApp || gotServer != wantServer {
					t.Fatalf("the app saw %q, without us %q\nthe server saw %q, without us %q", gotApp, wantApp, gotServer, wantServer)
				}
				wait(t, done)
			}
			t.Logf("app: %q server: %q", wantApp, wantServer)
		})
	}
}
