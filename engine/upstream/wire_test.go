package upstream

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestWire: long writes arrive as they are, whatever their length, beside
// reading that makes TLS write by itself.
func TestWire(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	never := false
	u := open(t, "https://"+serve(t, overTLS(cert, httpProxy(""), "http/1.1")).String(),
		func(s *Spec) { s.CA, s.HTTP2 = pool, &never }, Options{})
	c, err := u.DialStream(within(t, 5*time.Second), flow.TargetOf(serve(t, echo)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var want bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, n := range []int{1, tlsRecordBytes, tlsRecordBytes + 1, 2*tlsRecordBytes + 18, gatherBytes, 5*gatherBytes + 7} {
			b := make([]byte, n)
			_, _ = rand.Read(b)
			want.Write(b)
			if k, err := c.Write(b); k != n || err != nil {
				t.Errorf("%d of %d bytes: %v", k, n, err)
			}
		}
		_ = c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes of %d came back: %v", len(got), want.Len(), err)
	}
}

// TestWireGathers: a write of several records is one write below.
func TestWireGathers(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	sizes := make(chan int, 100)
	addr := serve(t, func(c *net.TCPConn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
		n, _ := io.Copy(io.Discard, tc)
		sizes <- int(n)
	})
	nd := &netDialer{}
	spec := Spec{Scheme: "https", Host: "127.0.0.1", Port: addr.Port(), CA: pool}
	c, err := nd.dialTLS(within(t, 5*time.Second), spec, new(counters), tlsConfig(spec, nil), time.Second*5)
	if err != nil {
		t.Fatal(err)
	}
	c.wire.gather()
	if _, err := c.Conn.Write(make([]byte, 40_000)); err != nil {
		t.Fatal(err)
	}
	if n := len(*c.wire.kept); n < 40_000 {
		t.Errorf("%d bytes kept of 40,000", n)
	}
	if err := c.wire.release(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := <-sizes; n != 40_000 {
		t.Errorf("%d bytes arrived", n)
	}
}
