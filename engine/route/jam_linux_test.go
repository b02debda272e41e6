package route

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// An app that makes its receive buffer small once it is connected is sent more
// than what the persist timer lets through, 0.1 MB/s (see jam).
func TestSmallReceiveBuffer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: TCP_REPAIR needs CAP_NET_ADMIN")
	}
	const size, within = 2 << 20, 8 * time.Second // 20 s without
	for _, hide := range []bool{false, true} {    // spliced; or written, as from an HTTP/2 stream
		for _, buffer := range []int{4 << 10, 8 << 10, 16 << 10} {
			h := handler(t, nil)
			app, appIn := pair(t)
			upIn, up := pair(t)
			if err := app.SetReadBuffer(buffer); err != nil {
				t.Fatal(err)
			}
			var in flow.StreamConn = upIn
			if hide {
				in = opaque{upIn}
			}
			done := make(chan struct{})
			go func() { defer close(done); h.relay(t.Context(), &live{sum: &h.viaBytes}, appIn, in) }()
			go func() {
				_, _ = up.Write(make([]byte, size))
				_ = up.CloseWrite()
			}()
			begin := time.Now()
			_ = app.SetReadDeadline(begin.Add(within))
			n, err := io.Copy(io.Discard, struct{ io.Reader }{app})
			t.Logf("buffer of %d: %.1f MB/s", buffer, float64(n)/1e6/time.Since(begin).Seconds())
			if n != size || err != nil {
				t.Errorf("buffer of %d: %d of %d bytes within %v: %v", buffer, n, size, within, err)
			}
			if r, _ := net.Listen("tcp", appIn.LocalAddr().String()); r != nil { // the repair leaves SO_REUSEADDR alone
				_ = r.Close()
			} else {
				t.Error("the port cannot be listened on again")
			}
			_ = app.Close()
			wait(t, done)
		}
	}
}
