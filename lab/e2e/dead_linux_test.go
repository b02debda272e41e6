package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// TestDeadUpstreamIsNoticed: an upstream that dies while nobody uses it does not
// keep the light green: whether it refuses or swallows everything, the state
// says so within 5 seconds, and says when it is back.
func TestDeadUpstreamIsNoticed(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	p, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.SOCKS5})
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, l, labDNS+fmt.Sprintf("[[upstream]]\nname = \"a\"\nurl = %q\n", p.URL()), "--up")
	s.await(api.On)
	works(t, l)
	inInternet := func(args ...string) {
		t.Helper()
		if out, err := l.Command(lab.Internet, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	inInternet("nft", "add table inet hole; add chain inet hole in { type filter hook input priority 0; }")
	for name, rule := range map[string]string{"silent": "drop", "refusing": "reject with tcp reset"} {
		s.await(api.On)
		time.Sleep(3 * time.Second) // quiet: nothing but keep-alives leaves
		inInternet("nft", fmt.Sprintf("add rule inet hole in meta l4proto tcp ip daddr %s tcp dport %d %s", p.Addr().Addr(), p.Addr().Port(), rule))
		began := time.Now()
		s.await(api.Blocked)
		took := time.Since(began)
		t.Logf("%s: noticed after %v", name, took.Round(100*time.Millisecond))
		if took > 5500*time.Millisecond { // half a second for those who look, on a busy machine
			t.Errorf("%s: noticed after %v", name, took)
		}
		inInternet("nft", "flush chain inet hole in")
	}
	s.await(api.On)
	works(t, l)
}
