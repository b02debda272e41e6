package upstream

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestUnheardRequest: a GET that has left ahead on an idle connection is sent
// again, soon, where the other end has not even acknowledged it; where it has,
// the answer is waited for.
func TestUnheardRequest(t *testing.T) {
	server, requests := countingServer(t)
	proxy := hasty(server, new(atomic.Int32))
	var deaf atomic.Bool
	deaf.Store(true)
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { // a small window, so that not all is acknowledged
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1)
		})
	}}
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if deaf.Load() {
					<-ended
					return
				}
				proxy(c.(*net.TCPConn))
			})
		}
	})
	u := open(t, "http://"+ln.Addr().String(), nil, Options{})
	t.Cleanup(func() { ln.Close(); close(ended); u.Close(); wg.Wait() })
	u.SetEarly(EarlyCarries)
	u.prover.proven.Store(1 << 20)
	u.streams.(*connect).line.pool.prime()
	settle(t, u, 2)
	deaf.Store(false)
	var tr Trace
	long := "GET /?" + strings.Repeat("q", 6000) + getHead[len("GET /"):]
	c, err := u.DialStream(WithTrace(within(t, 10*time.Second), &tr), flow.Target{Name: "a.example", Port: 80}, []byte(long))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := reachedBy(requests, 1, true); n != 1 || !tr.Early {
		t.Errorf("%d requests, %+v", n, tr)
	}
}
