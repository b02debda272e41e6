package lab_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// through fetches by a proxy and checks that the target saw the proxy's address.
func through(t *testing.T, l *lab.Lab, url, from string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	url = strings.Replace(url, "socks5:", "socks5h:", 1)
	args := []string{"--proxy", url, "--proxytunnel", "--proxy-cacert", l.CAFile()}
	f, err := l.Fetch(ctx, lab.Client, "https://example.test/bytes?n=300000&seed=3", lab.FetchOptions{Args: args})
	if err != nil || f.SHA256 != origin.Sum(300000, 3) {
		t.Errorf("by %s: %v: %+v", url, err, f)
	}
	f, err = l.Fetch(ctx, lab.Client, "http://v4.test/ip", lab.FetchOptions{Args: args})
	if err != nil || !strings.HasPrefix(string(f.Head), from+":") {
		t.Errorf("by %s the target saw %+v, not %s: %v", url, f, from, err)
	}
}

func TestRealPeersCarryARequest(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	for i, kind := range []lab.Kind{lab.Dante, lab.Tinyproxy, lab.Squid, lab.Apache} {
		t.Run(string(kind), func(t *testing.T) {
			p, err := l.StartPeer(kind, i, 3128)
			if errors.Is(err, lab.ErrNoPeer) {
				t.Skipf("SKIPPED: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			from := lab.Upstream4(i).String()
			if kind == lab.Apache {
				from = lab.Origin4().String() // it binds nothing; the kernel picks the target's own address
			}
			through(t, l, p.URL, from)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			if l.Origin.Counters.Requests.Load() == 0 {
				t.Error("the origin saw no request")
			}
		})
	}
}

func TestOwnProxies(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	for i, scheme := range []proxy.Scheme{proxy.HTTP, proxy.HTTPS, proxy.SOCKS5} {
		t.Run(string(scheme), func(t *testing.T) {
			p, err := l.StartProxy(lab.ProxyOptions{Scheme: scheme, Index: i, User: "u", Password: "p:ä"})
			if err != nil {
				t.Fatal(err)
			}
			through(t, l, p.URL(), lab.Upstream4(i).String())
			if n := p.Counters.Served.Load(); n != 2 {
				t.Errorf("%d requests served, not 2", n)
			}
		})
	}
}
