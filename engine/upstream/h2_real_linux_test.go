package upstream

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestRealApache: HTTP/2 CONNECT and HTTP/1.1 CONNECT over TLS.
func TestRealApache(t *testing.T) {
	rawURL, withCA := apache(t, true, "1-65535")
	never := false
	for name, h2 := range map[string]*bool{"h2": nil, "http1": &never} {
		t.Run(name, func(t *testing.T) {
			u := open(t, rawURL, func(s *Spec) { withCA(s); s.HTTP2 = h2 }, Options{})
			exercise(t, u, false)
			if s := u.Stats(); (s.Sessions > 0) != (name == "h2") {
				t.Errorf("HTTP/2 was not what was tested: %+v", s)
			}
		})
	}
}

// TestRealApacheMany: Apache admits a hundred streams in a session and serves
// six of them, fewer after resets; no flow fails for that.
func TestRealApacheMany(t *testing.T) {
	rawURL, change := apache(t, true, "1-65535")
	u := open(t, rawURL, change, Options{})
	target := flow.TargetOf(serve(t, echo))
	for round := range 2 {
		held := make([]flow.StreamConn, 40)
		var wg sync.WaitGroup
		for i := range held {
			wg.Go(func() {
				c, err := u.DialStream(within(t, 12*time.Second), target, []byte{byte(i)})
				if err != nil {
					t.Error(err)
					return
				}
				held[i] = c
				b := make([]byte, 1)
				if _, err := io.ReadFull(c, b); err != nil || b[0] != byte(i) {
					t.Errorf("%d came back as %d: %v", i, b[0], err)
				}
			})
		}
		wg.Wait()
		t.Logf("round %d: %d sessions", round, u.Stats().Sessions)
		for _, c := range held {
			if c != nil {
				c.Close() // by RST_STREAM: the target has not ended
			}
		}
	}
}

func BenchmarkH2Apache(b *testing.B) {
	rawURL, change := apache(b, true, "1-65535")
	benchmarkThroughput(b, rawURL, change)
}
