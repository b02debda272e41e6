package e2e

import (
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// TestLinkLocalResolver: a router that announces itself as a resolver by its
// link-local address (fe80::1%eth0) is asked by its interface, past every route.
// The query is ours all the same, over UDP and TCP, and nobody on the LAN can
// ask where we answer it.
func TestLinkLocalResolver(t *testing.T) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	mustAt(t, l, lab.Router, "ip -6 addr add fe80::1/64 dev br0 nodad")
	router := watch(t, l)
	upstream, allow := earlyProxy().upstream(t, l)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	for _, network := range []string{"udp", "tcp"} {
		for range 3 {
			m, err := askLink(l, network)
			if err != nil {
				t.Errorf("%s: %v", network, err)
				continue
			}
			if len(m.Answer) != 1 || !strings.HasPrefix(addrOf(m.Answer[0]).String(), "198.1") {
				t.Errorf("%s: answered by somebody else: %v", network, m)
			}
		}
	}
	noLeaks(t, router, "queries to a link-local resolver", allow...)
	link := strings.Fields(mustOut(t, l, lab.Client, "ip -6 -o addr show dev eth0 scope link"))[3]
	for _, network := range []string{"u", "t"} {
		out := mustOut(t, l, lab.Client, "ss -H -6 -ln"+network+" '! src [::1]'")
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			f := strings.Fields(line)
			if len(f) < 5 || !strings.HasPrefix(f[3], "[::]:") && !strings.HasPrefix(f[3], "*:") {
				continue
			}
			port := f[3][strings.LastIndex(f[3], ":")+1:]
			server := strings.Split(link, "/")[0]
			dig := "dig +time=1 +tries=1 -p " + port + " @" + server + "%eth0 example.test"
			if network == "t" {
				dig += " +tcp"
			}
			if out, err := at(t, l, lab.LAN, dig); err == nil || strings.Contains(out, "refused") {
				t.Errorf("the neighbour is answered on port %s of the client: %s", port, out)
			}
		}
	}
	works(t, l)
	s.stop()
}

// askLink asks the router's link-local address from the client.
func askLink(l *lab.Lab, network string) (m *dns.Msg, err error) {
	err = l.In(lab.Client, func() error {
		c, err := net.Dial(network, "[fe80::1%eth0]:53")
		if err != nil {
			return err
		}
		defer c.Close()
		q := new(dns.Msg)
		q.SetQuestion("example.test.", dns.TypeA)
		client := dns.Client{Net: network}
		m, _, err = client.ExchangeWithConn(q, &dns.Conn{Conn: c})
		return err
	})
	return m, err
}
