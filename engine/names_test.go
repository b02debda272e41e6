package engine

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Names of this machine and of its network go nowhere but there, unless a rule
// or [protect] lan = false says otherwise.
func TestWhyLocalNames(t *testing.T) {
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(p.url())
	cfg.Rules = []config.Rule{{Domain: []string{"nas.lan"}, Via: "auto"}}
	for _, lan := range []bool{true, false} {
		cfg.Protect.LAN = lan
		b := newBench(t, cfg)
		until(t, "the network is known", func() bool { return len(b.names.net.Load().lan) > 0 })
		near := map[bool]string{true: "direct", false: "auto"}[lan]
		for host, want := range map[string]string{
			"localhost": "direct", "app.localhost:3000": "direct", "127.0.0.1": "direct", "[::1]:80": "direct",
			"printer.local": near, "router": near, "192.168.1.7": near, "x.home.arpa": near,
			"nas.lan": "auto", "example.com": "auto", "notlocal": near, "local.example.com": "auto",
		} {
			if w, err := b.Why(host); err != nil || w.Verdict != want {
				t.Errorf("lan=%v %s: %s (%v), want %s", lan, host, w.Verdict, err, want)
			}
		}
	}
}

// localhost by the local proxy is this machine, not the upstream's.
func TestLocalhostByTheLocalProxy(t *testing.T) {
	var hits atomic.Int32
	origin := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer origin.Close()
	p := newFakeProxy(t, "127.0.0.1:0", replyOK)
	cfg := testConfig(p.url())
	cfg.Listen.Proxy = "127.0.0.1:0"
	b := newBench(t, cfg, func(o *Options) { o.NoTUN = true })
	b.prefs(t, api.Prefs{On: ptr(true)})
	st := b.waitFor(t, api.On)
	_, port, _ := net.SplitHostPort(origin.Listener.Addr().String())
	tr := &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return url.Parse("http://" + st.Proxy) }}
	defer tr.CloseIdleConnections()
	// A transport asks no proxy for localhost itself, but for a name below it.
	resp, err := (&http.Client{Transport: tr}).Get("http://app.localhost:" + port)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || hits.Load() != 1 {
		t.Errorf("%s, %d hits", resp.Status, hits.Load())
	}
}

// startResolver answers over UDP with the addresses that zone has.
func startResolver(t *testing.T, zone map[string]string) *dns.Client {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	srv := &mdns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(ready) }, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		r := new(mdns.Msg).SetReply(q)
		for text := range strings.FieldsSeq(zone[strings.ToLower(q.Question[0].Name)]) {
			a, kind := netip.MustParseAddr(text), "A"
			if a.Is6() {
				kind = "AAAA"
			}
			if mdns.TypeToString[q.Question[0].Qtype] == kind {
				rr, _ := mdns.NewRR(q.Question[0].Name + " 60 IN " + kind + " " + text)
				r.Answer = append(r.Answer, rr)
			}
		}
		if len(r.Answer) == 0 {
			r.Rcode = mdns.RcodeNameError
		}
		_ = w.WriteMsg(r)
	})}
	go func() { _ = srv.ActivateAndServe() }()
	<-ready
	t.Cleanup(func() { _ = srv.Shutdown() })
	c, err := dns.NewClient(dns.ClientOptions{Servers: []string{pc.LocalAddr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Where no proxy is (the default), a name of the public internet leads neither
// to this machine nor into its own TUN; to a private address only if this
// network's own resolver says so, or a rule.
func TestRebindingDirect(t *testing.T) {
	origin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer origin.Close()
	port := uint16(origin.Addr().(*net.TCPAddr).Port)
	cfg := testConfig("direct://")
	cfg.Rules = []config.Rule{{DomainSuffix: []string{"mine.test"}, Via: "direct"}}
	b := newBench(t, cfg)
	until(t, "the network is known", func() bool { return len(b.names.net.Load().lan) > 0 })
	set := func(server string) {
		b.names.setNetwork(platform.NetChange{
			Up: true, DNS: []netip.Addr{netip.MustParseAddr(server)}, Search: []string{"corp.test", "com", "co.uk"},
			LAN:  []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
			Self: []netip.Addr{netip.MustParseAddr("192.168.1.7"), netip.MustParseAddr("203.0.113.77")},
		})
		zone := map[string]string{
			"loop.test.": "127.0.0.1 ::1", "zero.test.": "0.0.0.0 ::", "tun.test.": "198.18.0.1 fd61:746c:616e:7469::2", "fake.test.": "198.18.1.0",
			"meta.test.": "169.254.169.254", "mapped.test.": "::ffff:127.0.0.1", "self.test.": "192.168.1.7", "me.test.": "203.0.113.77",
			"private.test.": "192.168.1.9", "both.test.": "127.0.0.1 203.0.113.9", "good.test.": "203.0.113.9",
			"loop.mine.test.": "127.0.0.1", "nas.mine.test.": "192.168.1.9", "me.mine.test.": "203.0.113.77",
			"nas.corp.test.": "192.168.1.9", "x.com.": "192.168.1.9", "x.co.uk.": "127.0.0.1",
		}
		for _, at := range []*atomic.Pointer[dns.Client]{&b.names.system, &b.names.near} {
			if old := at.Swap(startResolver(t, zone)); old != nil {
				old.Close()
			}
		}
	}
	for server, private := range map[string]string{"192.168.1.1": "192.168.1.9", "10.9.9.9": "192.168.1.9", "198.51.100.1": ""} {
		set(server)
		for name, want := range map[string]string{
			"loop.test": "", "zero.test": "", "tun.test": "", "fake.test": "", "meta.test": "", "mapped.test": "", "self.test": "", "me.test": "",
			"LOOP.test.": "", "both.test": "203.0.113.9", "good.test": "203.0.113.9", "private.test": private, "x.com": private, "x.co.uk": "",
			"loop.mine.test": "", "nas.mine.test": "192.168.1.9", "me.mine.test": "203.0.113.77", "nas.corp.test": "192.168.1.9",
		} {
			addrs, err := b.names.lookupTarget(t.Context(), name)
			got := ""
			if len(addrs) > 0 {
				got = addrs[0].String()
			}
			if got != want || len(addrs) > 1 || (err == nil) != (want != "") {
				t.Errorf("resolver %s: %s leads to %v (%v), want %q", server, name, addrs, err, want)
			}
		}
	}
	// The same where it counts: the upstream of direct flows.
	for _, name := range []string{"loop.test", "zero.test"} {
		c, err := b.ups.direct.DialStream(context.Background(), flow.Target{Name: name, Port: port}, nil)
		if err == nil {
			c.Close()
			t.Errorf("%s reached a service of this machine", name)
		} else if !strings.Contains(err.Error(), "DNS rebinding") {
			t.Error(err)
		}
	}
	if addrs, err := b.names.lookup(t.Context(), "loop.test"); err != nil || len(addrs) != 2 {
		t.Errorf("an upstream that the user put on this machine: %v, %v", addrs, err)
	}
	if got := b.names.net.Load().search; !slices.Equal(got, []string{"corp.test"}) {
		t.Errorf("search domains %v", got)
	}
}
