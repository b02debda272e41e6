package e2e

import (
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// A machine whose firewall lets nothing new in (ufw's default) drops what the
// kernel path hands back to the kernel; traffic has to flow all the same.
func TestHostFirewall(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	nft := l.Command(lab.Client, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(`table inet host { chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		ct state established,related accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
	}
}
`)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	s := start(t, l, labDNS, "--up")
	st := s.await(api.On)
	if st.TUN.Path != "userspace" || !strings.Contains(strings.Join(st.Warnings, ""), "firewall drops what comes in by atlantic0") {
		t.Errorf("path %q, warnings %q", st.TUN.Path, st.Warnings)
	}
	fetches(t, l, way{})
}
