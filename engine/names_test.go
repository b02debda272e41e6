package engine

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
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
		until(t, "the network is known", func() bool { return b.names.lan.Load() != nil })
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
