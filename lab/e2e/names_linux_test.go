package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// lanResolver is the name server of the client's network, with names that lead
// where they should not.
type lanResolver struct {
	mu    sync.Mutex
	asked []string // guarded by mu
}

func startLANResolver(t *testing.T, l *lab.Lab, edns bool) *lanResolver {
	t.Helper()
	r := &lanResolver{}
	zone := map[string]string{
		"nas.corp.test.": lab.LAN4().String(), "nas.": lab.LAN4().String(), "fritz.box.": lab.LAN4().String(), "web.fritz.box.": lab.LAN4().String(),
		"wpad.": lab.LAN4().String(), "wpad.corp.test.": lab.LAN4().String(),
		"loop.evil.test.": "127.0.0.1", "zero.evil.test.": "0.0.0.0", "self.evil.test.": lab.Client4().String(), "tun.evil.test.": "198.18.0.1",
		"v4.test.": lab.Origin4().String(),
	}
	ns := l.NS(lab.LAN)
	pc, err := ns.ListenPacket("udp", lab.LAN4().String()+":53")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	srv := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(ready) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		name := strings.ToLower(q.Question[0].Name)
		m := new(dns.Msg).SetReply(q)
		switch to := zone[name]; {
		case q.IsEdns0() != nil && !edns: // an old one
			m.Rcode = dns.RcodeFormatError
		case to == "":
			m.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(to)}}
		}
		r.mu.Lock()
		r.asked = append(r.asked, name)
		r.mu.Unlock()
		_ = w.WriteMsg(m)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() { _ = srv.Shutdown() })
	return r
}

// names are those that it was asked for.
func (r *lanResolver) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(r.asked)))
}

// resolved is what glibc's getaddrinfo finds for IPv4, "" if nothing.
func resolved(t *testing.T, l *lab.Lab, name string) string {
	t.Helper()
	out, code := inClient(t, l, "getent", "ahostsv4", name)
	if code != 0 {
		return ""
	}
	return strings.Fields(out)[0]
}

// TestSearchList: names of the network's own domains, and the resolver options
// that make them, mean what they mean without us, by glibc's own resolver and a
// name server that refuses EDNS; and that server learns of no others.
func TestSearchList(t *testing.T) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	lan := startLANResolver(t, l, false)
	p, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	text := "search corp.test fritz.box\nnameserver " + lab.LAN4().String() + "\noptions ndots:2 timeout:2 edns0\n"
	if err := l.SetResolvConf(lab.Client, text); err != nil {
		t.Fatal(err)
	}
	nas := lab.LAN4().String()
	own := map[string]string{
		"nas": nas, "nas.corp.test": nas, "fritz.box": nas, "web": nas, "web.fritz.box": nas,
		"nope": "", "nope.corp.test": "", "x.nope": "fake", "x.y.fritz.box": "",
	} // what is not of the network, only the upstream could tell
	s := start(t, l, labDNS+fmt.Sprintf("[[upstream]]\nname = \"one\"\nurl = %q\n", p.URL()), "--up")
	s.await(api.On)
	for name, want := range own {
		got := resolved(t, l, name)
		if strings.HasPrefix(got, "198.18.") {
			got = "fake"
		}
		if got != want {
			t.Errorf("%s leads to %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"www.example.test", "example.test"} {
		if got := resolved(t, l, name); !strings.HasPrefix(got, "198.18.") {
			t.Errorf("%s leads to %q, not through the upstream", name, got)
		}
	}
	asked := lan.names()
	if !slices.Contains(asked, "example.test.corp.test.") {
		t.Errorf("ndots:2 means nothing: the network was asked for %v", asked)
	}
	for _, name := range asked {
		if !strings.HasSuffix(name, ".corp.test.") && !strings.HasSuffix(name, "fritz.box.") && strings.Count(name, ".") > 1 {
			t.Errorf("the network was asked for %s", name)
		}
	}
	// Names that nobody is asked for.
	for _, name := range []string{"wpad", "wpad.corp.test", "isatap", "1.2.3.4."} {
		if got := resolved(t, l, name); got != "" {
			t.Errorf("%s leads to %s", name, got)
		}
		if out, code := inClient(t, l, "dig", "+tries=1", "+time=3", "@198.51.100.53", "A", name); code != 0 || !strings.Contains(out, "status: NXDOMAIN") {
			t.Errorf("dig %s: exit code %d: %s", name, code, out)
		}
	}
	if asked := lan.names(); slices.ContainsFunc(asked, func(n string) bool { return strings.HasPrefix(n, "wpad") || strings.HasPrefix(n, "isatap") }) {
		t.Errorf("the network was asked for %v", asked)
	}
}

// TestRebinding: without a proxy, as it comes, a name of the internet does not
// lead to a service of this machine, by the TUN and by the local proxy.
func TestRebinding(t *testing.T) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	startLANResolver(t, l, true)
	if err := l.SetResolvConf(lab.Client, "nameserver "+lab.LAN4().String()+"\n"); err != nil {
		t.Fatal(err)
	}
	ln, err := l.NS(lab.Client).Listen("tcp", "0.0.0.0:8888")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") })}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	if out, _ := inClient(t, l, "curl", "-s", "http://127.0.0.1:8888/"); out != "secret" {
		t.Fatalf("nothing is to be reached: %q", out)
	}
	s := start(t, l, "", "--up")
	st := s.await(api.On)
	for _, name := range []string{"loop.evil.test", "zero.evil.test", "self.evil.test", "tun.evil.test"} {
		for _, args := range [][]string{nil, {"-x", "http://" + st.Proxy}, {"-x", "socks5h://" + st.Proxy}} {
			out, code := inClient(t, l, append([]string{"curl", "-sS", "--max-time", "5", "http://" + name + ":8888/"}, args...)...)
			if strings.Contains(out, "secret") || code == 28 {
				t.Errorf("%s %v: exit code %d: %s", name, args, code, out)
			}
		}
	}
	if got := resolved(t, l, "loop.evil.test"); !netip.MustParsePrefix("198.18.0.0/15").Contains(netip.MustParseAddr(got)) {
		t.Errorf("loop.evil.test leads to %s", got)
	}
	if out, code := inClient(t, l, "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://v4.test/"); code != 0 {
		t.Errorf("other names do not work: %s", out)
	}
	contains(t, s.must("why", "loop.evil.test:8888"), "DNS rebinding")
}
