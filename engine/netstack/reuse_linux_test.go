package netstack

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

// A port that an app has reset a connection on is free for the next one to the
// same target at once.
func TestUserspacePortReuseAfterReset(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := gvisorHandler{stream: func(_ context.Context, _ flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	}}
	onEachDevice(t, h, func(t *testing.T, _ *Stack) {
		d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}}
		for i := range 50 {
			begin := time.Now()
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(198, 18, 0, 1), Port: 31000}
			c, err := d.Dial("tcp", "203.0.113.7:443")
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Write([]byte("hello"))
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			switch i % 3 {
			case 0:
				c.Write([]byte("unread answer"))
				time.Sleep(time.Millisecond)
			case 1:
				c.(*net.TCPConn).CloseWrite()
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
			if took := time.Since(begin); took > 500*time.Millisecond {
				t.Errorf("connection %d took %v", i, took)
			}
		}
	})
}
