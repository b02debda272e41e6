package upstream

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestRealVerdicts: what is found out about early data holds for the proxies
// that people run, and the bytes are exact.
func TestRealVerdicts(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{
		"tinyproxy": func(t *testing.T) string { return tinyproxy(t, "") },
		"squid":     func(t *testing.T) string { return squid(t, "") },
		"dante":     func(t *testing.T) string { return dante(t) },
		"apache": func(t *testing.T) string {
			rawURL, _ := apache(t, false, "1-65535")
			return rawURL
		},
		"haproxy": func(t *testing.T) string { return haproxy(t, tinyproxy(t, ""), "") },
		"nghttpx": func(t *testing.T) string { return nghttpx(t, tinyproxy(t, "")) },
		"microsocks": func(t *testing.T) string {
			port := freePort(t)
			start(t, port, "microsocks", "-i", "127.0.0.1", "-p", fmt.Sprint(port))
			return fmt.Sprintf("socks5://127.0.0.1:%d", port)
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := open(t, start(t), nil, Options{})
			if err := u.Check(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			web := flow.TargetOf(netip.MustParseAddrPort(webServer(t)))
			verdict := EarlyCarries
			if name == "microsocks" { // it forgets what it reads beyond the request
				verdict = EarlyRefuses
			}
			for range 3 {
				getFrom(t, u, web)
				settles(t, u, verdict)
			}
			u.prover.proven.Store(1 << 20)
			server := flow.TargetOf(serve(t, echo))
			for i, size := range []int{1, 600, 1460, 4000, 8000, 16000} {
				early := append([]byte("GET / HTTP/1.1\r\nX: "), bytes.Repeat([]byte{'x'}, size)...)
				early = append(early, "\r\n\r\n"...)
				var tr Trace
				c, err := u.DialStream(WithTrace(within(t, 10*time.Second), &tr), server, early)
				if err != nil {
					t.Fatal(err)
				}
				more := make([]byte, 1<<20)
				for i := range more {
					more[i] = byte(rand.Uint32())
				}
				go func() { _, _ = c.Write(more) }()
				want := append(early, more...)
				got := make([]byte, len(want))
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes early: not what was sent (%v)", size, err)
				}
				_ = c.Close()
				if tr.Early != (verdict == EarlyCarries) || i > 0 && !tr.Warm {
					t.Errorf("%d bytes early: %+v", size, tr)
				}
			}
			if s := u.Stats(); s.Failures != 0 || u.Early() != verdict {
				t.Errorf("%+v, %v", s, u.Early())
			}
		})
	}
}
