package e2e

import (
	"errors"
	"fmt"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// TestOtherAddresses: names whose first address is dead open through real
// proxies that try one address, as they would in a browser without a proxy; and
// those of which no address lives fail soon.
func TestOtherAddresses(t *testing.T) {
	for kind, names := range map[lab.Kind]map[string]bool{ // whether an address lives
		lab.Dante:     {"many.test": true, "hole.test": true, "dead6.test": true, "example.test": true, "closed.test": false, "nx.test": false},
		lab.Tinyproxy: {"hole.test": true, "nx.test": false},
		lab.Squid:     {"hole.test": true, "closed.test": false},
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			l := lab.NewTest(t, lab.Options{})
			p, err := l.StartPeer(kind, 1, 3128)
			if errors.Is(err, lab.ErrNoPeer) {
				t.Skipf("SKIPPED: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			silence(t, l)
			s := start(t, l, labDNS+fmt.Sprintf("[[upstream]]\nname = \"a\"\nurl = %q\n", p.URL), "--up")
			st := s.await(api.On)
			for name, lives := range names {
				for _, way := range [][]string{nil, {"-x", "socks5h://" + st.Proxy}} {
					for _, scheme := range []string{"http", "https"} {
						if scheme == "http" && way != nil {
							continue // as by the TUN
						}
						// A GET that is already on its way may not be on another: it waits for the proxy.
						limit := map[string]string{"http": "15", "https": "8"}[scheme]
						out, code := inClient(t, l, append([]string{"curl", "-sS", "-o", "/dev/null", "--max-time", limit,
							"--cacert", l.CAFile(), scheme + "://" + name + "/proto"}, way...)...)
						if lives != (code == 0) || code == 28 {
							t.Errorf("%s://%s by %v: exit code %d: %s", scheme, name, way, code, out)
						}
					}
				}
			}
		})
	}
}

// silence makes the black hole one for proxies in the internet too.
func silence(t *testing.T, l *lab.Lab) {
	t.Helper()
	out, err := l.Command(lab.Internet, "sh", "-ec", fmt.Sprintf(`ip route del blackhole %[1]s; ip -6 route del blackhole %[2]s
		nft "add table inet hole; add chain inet hole out { type filter hook output priority 0; }
		add rule inet hole out ip daddr %[1]s drop; add rule inet hole out ip6 daddr %[2]s drop"`, lab.Blackhole4(), lab.Blackhole6())).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
