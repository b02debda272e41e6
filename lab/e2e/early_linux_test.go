package e2e

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// TestRefusedConnectPassesNoRule: an app that is let in at once, because its
// first bytes leave ahead, cannot use a proxy's refusal to get a request past
// the rules (RFC 9931).
func TestRefusedConnectPassesNoRule(t *testing.T) {
	for _, scheme := range []proxy.Scheme{proxy.HTTP, proxy.HTTPS} {
		t.Run(string(scheme), func(t *testing.T) {
			l := lab.NewTest(t, lab.Options{})
			p, err := l.StartProxy(lab.ProxyOptions{Scheme: scheme, HTTP1Only: true, Forwards: true})
			if err != nil {
				t.Fatal(err)
			}
			trust := ""
			if scheme == proxy.HTTPS {
				trust = fmt.Sprintf("ca = %q\nsni = \"lab.test\"\n", l.CAFile())
			}
			s := start(t, l, labDNS+fmt.Sprintf("[[upstream]]\nname = \"a\"\nurl = %q\n", p.URL())+trust+"[[rule]]\ndomain = [\"blocked.test\"]\nvia = \"block\"\n", "--up")
			s.await(api.On)
			awaitEarly(t, l, s)
			p.SetFault(proxy.Forbid)
			before := p.Counters.Connects.Load()
			for range 5 {
				c := dial(t, l, "tcp", "example.test:80")
				io.WriteString(c, "GET http://blocked.test/ HTTP/1.1\r\nHost: blocked.test\r\n\r\n")
				io.ReadAll(c) // until the refusal has come back as a reset
			}
			if n := p.Counters.Connects.Load() - before; n < 5 {
				t.Errorf("%d CONNECTs of 5 were asked for", n)
			}
			if n := p.Counters.Forwarded.Load(); n != 0 {
				t.Errorf("%d requests to a blocked name were executed", n)
			}
		})
	}
}

// awaitEarly fetches until the upstream is known to carry early data.
func awaitEarly(t *testing.T, l *lab.Lab, s *service) {
	t.Helper()
	var st api.Status
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if st = s.status(); st.Upstream.EarlyData {
			return
		}
		_, _ = l.Fetch(t.Context(), lab.Client, "http://example.test/proto", lab.FetchOptions{})
	}
	t.Fatalf("early data: %s\n%s", st.Upstream.Early, s.out)
}
