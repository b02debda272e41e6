package upstream

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestWatch: a proxy that is gone is noticed without a flow; one that restarts,
// or hangs up on connections that ask for nothing, is not gone.
func TestWatch(t *testing.T) {
	listen := func(addr string, conns *atomic.Int32, hangUp bool) (net.Listener, func()) {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open := make(chan net.Conn, 100)
		go func() { // ends with ln
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				conns.Add(1)
				if hangUp {
					c.Close()
					continue
				}
				open <- c
			}
		}()
		return ln, func() {
			ln.Close()
			for len(open) > 0 {
				(<-open).Close()
			}
		}
	}
	t.Run("gone", func(t *testing.T) {
		t.Parallel()
		var conns atomic.Int32
		ln, stop := listen("127.0.0.1:0", &conns, false)
		u := open(t, "socks5://"+ln.Addr().String(), nil, Options{})
		watched := make(chan error, 1)
		go func() { watched <- u.Watch(t.Context()) }()
		eventually(t, "no connection", func() bool { return conns.Load() > 0 })
		stop()
		_, stop = listen(ln.Addr().String(), &conns, false) // it restarts
		select {
		case err := <-watched:
			t.Fatalf("a restart is taken for the end: %v", err)
		case <-time.After(2 * time.Second):
		}
		eventually(t, "no connection after the restart", func() bool { return conns.Load() > 1 })
		stop()
		began := time.Now()
		var e *Error
		if err := <-watched; !errors.As(err, &e) || e.Kind != Refused || e.Upstream != "test" {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("noticed after %v", took)
		}
	})
	t.Run("hangs up", func(t *testing.T) {
		t.Parallel()
		var conns atomic.Int32
		ln, stop := listen("127.0.0.1:0", &conns, true)
		defer stop()
		u := open(t, "http://"+ln.Addr().String(), nil, Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		if err := u.Watch(ctx); err != nil {
			t.Error(err)
		}
		if n := conns.Load(); n < 2 || n > 3 {
			t.Errorf("%d connections in 4 s", n)
		}
	})
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := open(t, "direct://", nil, Options{}).Watch(ctx); err != nil {
			t.Error(err)
		}
	})
}
