package netstack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

// A window that shuts must not stop the other direction (see narrow): an app
// that reads only when it can send no more, and a Handler that only answers what
// it has read, fill both windows to the byte again and again, in pieces of any
// size. The app's kernel is this machine's.
func TestUserspaceWindowsDoNotStall(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := gvisorHandler{stream: func(_ context.Context, f flow.Flow, p flow.Pending) {
		c, err := p.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, f.Dst.Port()))
		c.CloseWrite()
	}}
	onEachDevice(t, h, func(t *testing.T, _ *Stack) {
		var apps sync.WaitGroup
		for range 8 / slower {
			apps.Go(func() {
				seed := rand.Uint64()
				if err := fillAndDrain(rand.New(rand.NewPCG(seed, 1)), 12<<20); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			})
		}
		apps.Wait()
	})
}

// fillAndDrain sends n bytes in pieces; whenever no more can be sent, it reads
// and compares some of what has come back.
func fillAndDrain(rng *rand.Rand, n int) error {
	conn, err := net.DialTimeout("tcp", fmt.Sprint("203.0.113.7:", 500+rng.IntN(65000)), 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	if rng.IntN(2) == 0 {
		c.SetReadBuffer(16 << 10 << rng.IntN(6))
	}
	c.SetNoDelay(rng.IntN(2) == 0)

	out, sent := randomBytes(byte(rng.Uint32()), n), atomic.Int64{}
	wrote := make(chan error, 1)
	piece := 500 + rng.IntN(1<<rng.IntN(18))
	go func() {
		var err error
		for b := out; len(b) > 0 && err == nil; {
			var k int
			k, err = c.Write(b[:min(piece, len(b))])
			b = b[k:]
			sent.Add(int64(k))
		}
		c.CloseWrite()
		wrote <- err
	}()
	buf := make([]byte, 1<<20)
	for got := 0; got < n; {
		awaitStandstill(&sent, n)
		for want := min(1+rng.IntN(4<<20), n-got); want > 0; {
			c.SetReadDeadline(time.Now().Add(30 * time.Second))
			k, err := c.Read(buf[:min(1+rng.IntN(len(buf)), want)])
			if !bytes.Equal(buf[:k], out[got:got+k]) {
				return fmt.Errorf("bytes %d to %d come back wrong", got, got+k)
			}
			got, want = got+k, want-k
			if err != nil {
				return fmt.Errorf("after %d of %d bytes sent and %d received: %w", sent.Load(), n, got, err)
			}
		}
	}
	return <-wrote
}

// awaitStandstill returns once sent has not changed for a while, or is n.
func awaitStandstill(sent *atomic.Int64, n int) {
	for before := int64(-1); before != sent.Load() && sent.Load() < int64(n); {
		before = sent.Load()
		time.Sleep(20 * time.Millisecond)
	}
}
