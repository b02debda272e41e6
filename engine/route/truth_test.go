package route

import (
	"io"
	"net"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// speaker is an app of the local proxy that has said something already.
type speaker struct {
	pending
	said []byte
}

func (s *speaker) Spoken() []byte { return s.said }

// TestLocalProxyTellsTheTruth: with early data too, an app that asks a protocol
// for a connection is answered as the upstream has answered, and what it has said
// without waiting leaves with the request.
func TestLocalProxyTellsTheTruth(t *testing.T) {
	for _, said := range []string{"", get} {
		for _, code := range []byte{0, 5} {
			proxy, requests := socksProxy(t, code, func(c *net.TCPConn, early []byte) { _, _ = c.Write(early); _, _ = io.Copy(c, c) })
			h := earlyHandler(t, proxy)
			app, in := pair(t)
			p := &speaker{pending: pending{conn: in}, said: []byte(said)}
			f := tcpFlow(flow.Target{Name: "a.example", Port: 80})
			done := make(chan struct{})
			go func() { defer close(done); h.HandleStream(t.Context(), f, p) }()
			if early := <-requests; string(early) != said {
				t.Errorf("code %d: with the request came %q, want %q", code, early, said)
			}
			if code == 0 {
				_, _ = app.Write([]byte("more"))
				_ = app.CloseWrite()
				if back, err := io.ReadAll(app); string(back) != said+"more" || err != nil {
					t.Errorf("back came %q, %v", back, err)
				}
			}
			wait(t, done)
			if p.accepted != (code == 0) || p.rejected != map[byte]flow.Reason{0: 0, 5: flow.Refused}[code] {
				t.Errorf("code %d, said %q: accepted %v, rejected %v", code, said, p.accepted, p.rejected)
			}
			if c := h.Counters(); code == 0 && c.Up != uint64(len(said)+4) {
				t.Errorf("counted %d up", c.Up)
			}
		}
	}
}
