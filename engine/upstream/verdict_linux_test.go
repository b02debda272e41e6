package upstream

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestRealVerdicts: what is found out about early data holds for the proxies
// that people run, and the bytes are exact.
func TestRealVerdicts(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{
		"tinyproxy": func(t *testing.T) string {
			port := freePort(t)
			conf := write(t, t.TempDir(), "tinyproxy.conf", fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 60\nMaxClients 200\nLogLevel Error\n", port))
			start(t, port, "tinyproxy", "-d", "-c", conf)
			return fmt.Sprintf("http://127.0.0.1:%d", port)
		},
		"squid": func(t *testing.T) string {
			dir, port := shareDir(t), freePort(t)
			conf := write(t, dir, "squid.conf", fmt.Sprintf("http_port 127.0.0.1:%d\nhttp_access allow all\npid_filename %s/pid\ncache_log %s/cache.log\naccess_log none\ncache deny all\ncoredump_dir %s\nshutdown_lifetime 0 seconds\nnetdb_filename none\n", port, dir, dir, dir))
			start(t, port, "squid", "-N", "-f", conf)
			return fmt.Sprintf("http://127.0.0.1:%d", port)
		},
		"dante": func(t *testing.T) string {
			dir, port := shareDir(t), freePort(t)
			conf := write(t, dir, "danted.conf", fmt.Sprintf("logoutput: %s/log\ninternal: 127.0.0.1 port = %d\nexternal: 127.0.0.1\nclientmethod: none\nsocksmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\nclient pass {\n from: 0.0.0.0/0 to: 0.0.0.0/0\n}\nsocks pass {\n from: 0.0.0.0/0 to: 0.0.0.0/0\n}\n", dir, port))
			start(t, port, "danted", "-f", conf, "-p", filepath.Join(dir, "pid"))
			return fmt.Sprintf("socks5://127.0.0.1:%d", port)
		},
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
			for range 3 {
				getFrom(t, u, web)
			}
			verdict := EarlyCarries
			if name == "microsocks" { // it forgets what it reads beyond the request
				verdict = EarlyRefuses
			}
			if u.Early() != verdict {
				t.Errorf("the verdict is %v", u.Early())
			}
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
