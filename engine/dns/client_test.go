package dns

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// origin is a real DNS server for the tests of Client.
type origin struct {
	udp, tcp, dot, doh string
	roots              *x509.CertPool
	conns              atomic.Int32 // accepted over TCP and TLS
}

type countingListener struct {
	net.Listener
	n *atomic.Int32
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func zone(w dns.ResponseWriter, q *dns.Msg) {
	r := new(dns.Msg)
	r.SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	add := func(text string) {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		r.Answer = append(r.Answer, rr)
	}
	_, isUDP := w.RemoteAddr().(*net.UDPAddr)
	switch {
	case name == "big.test." && isUDP:
		r.Truncated = true
	case name == "none.test.":
		r.Rcode = dns.RcodeNameError
	case name == "alias.test.":
		add("alias.test. 60 IN CNAME more.test.")
		add("more.test. 60 IN CNAME host.test.") // the rest must be asked for
	case name == "loop.test.":
		add("loop.test. 60 IN CNAME loop2.test.")
		add("loop2.test. 60 IN CNAME loop.test.")
	case q.Question[0].Qtype == dns.TypeA:
		add(name + " 60 IN A 192.0.2.1")
	case q.Question[0].Qtype == dns.TypeAAAA && name != "v4.test.":
		add(name + " 60 IN AAAA 2001:db8::1")
	case q.Question[0].Qtype == dns.TypeTXT:
		add(name + ` 60 IN TXT "x"`)
	}
	if name == "forged.test." && isUDP {
		bad := r.Copy()
		bad.Id++
		_ = w.WriteMsg(bad)
		bad = r.Copy()
		bad.Question[0].Name = "evil.test."
		_ = w.WriteMsg(bad)
		b, _ := r.Pack()
		_, _ = w.Write(b[:7])
	}
	_ = w.WriteMsg(r)
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{roots: x509.NewCertPool()}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		q, r := new(dns.Msg), new(dns.Msg)
		if req.ProtoMajor != 2 || req.Header.Get("Content-Type") != "application/dns-message" || q.Unpack(b) != nil || q.Id != 0 {
			http.Error(w, "bad", 400)
			return
		}
		r.SetReply(q)
		rr, _ := dns.NewRR(q.Question[0].Name + ` 60 IN A 192.0.2.1`)
		r.Answer = []dns.RR{rr}
		w.Header().Set("Content-Type", "application/dns-message")
		_, _ = w.Write(mustPack(r))
	}))
	web.EnableHTTP2 = true
	web.StartTLS()
	t.Cleanup(web.Close)
	o.roots.AddCert(web.Certificate())
	o.doh = web.URL + "/dns-query"

	l, pc := listenBoth(t)
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.udp, o.tcp, o.dot = "udp://"+pc.LocalAddr().String(), "tcp://"+l.Addr().String(), "tls://"+s.Addr().String()
	for _, srv := range []*dns.Server{
		{PacketConn: pc, Handler: dns.HandlerFunc(zone)},
		{Listener: countingListener{l, &o.conns}, Handler: dns.HandlerFunc(zone)},
		{Listener: tls.NewListener(countingListener{s, &o.conns}, &tls.Config{Certificates: web.TLS.Certificates}), Handler: dns.HandlerFunc(zone)},
	} {
		ready := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(ready) }
		go func() { _ = srv.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	return o
}

func newClientT(t *testing.T, o ClientOptions) *Client {
	t.Helper()
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func exchangeT(t *testing.T, c *Client, name string, qtype uint16) *dns.Msg {
	t.Helper()
	q := query(name, qtype)
	b, err := c.Exchange(context.Background(), mustPack(q))
	if err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil || !answers(q, r) {
		t.Fatal(err, r)
	}
	return r
}

func TestClientTransports(t *testing.T) {
	o := newOrigin(t)
	for _, server := range []string{o.udp, strings.TrimPrefix(o.udp, "udp://"), o.tcp, o.dot, o.doh} {
		c := newClientT(t, ClientOptions{Servers: []string{server}, Roots: o.roots})
		before := o.conns.Load()
		for range 5 {
			if r := exchangeT(t, c, "Host.Test.", dns.TypeA); len(r.Answer) != 1 {
				t.Error(server, r)
			}
		}
		if n := o.conns.Load() - before; n > 1 {
			t.Errorf("%s: %d connections for 5 queries", server, n)
		}
	}
	c := newClientT(t, ClientOptions{Servers: []string{o.udp}})
	if r := exchangeT(t, c, "forged.test.", dns.TypeA); r.Truncated || len(r.Answer) != 1 {
		t.Error(r)
	}
	if r := exchangeT(t, c, "big.test.", dns.TypeTXT); r.Truncated || len(r.Answer) != 1 {
		t.Error("no TCP after TC", r)
	}
	// UDP that cannot be dialled, as through an upstream without UDP.
	c = newClientT(t, ClientOptions{Servers: []string{o.udp}, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "udp" {
			return nil, errors.New("no udp")
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}})
	exchangeT(t, c, "host.test.", dns.TypeA)
}

func TestClientReconnects(t *testing.T) {
	o := newOrigin(t)
	var mu sync.Mutex
	var dialled []net.Conn
	c := newClientT(t, ClientOptions{Servers: []string{o.dot}, Roots: o.roots, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		mu.Lock()
		dialled = append(dialled, conn)
		mu.Unlock()
		return conn, err
	}})
	exchangeT(t, c, "a.test.", dns.TypeA)
	mu.Lock()
	dialled[0].Close() // while idle
	mu.Unlock()
	exchangeT(t, c, "b.test.", dns.TypeA)
	if len(dialled) != 2 {
		t.Error(len(dialled), "connections")
	}
}

func TestClientFailsOver(t *testing.T) {
	o := newOrigin(t)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>login</html>") }))
	defer web.Close()
	o.roots.AddCert(web.Certificate())
	for name, first := range map[string]string{
		"refused": "tcp://127.0.0.1:1", "silent": "udp://" + silent.LocalAddr().String(), "html": web.URL, "wrong certificate": strings.Replace(o.dot, "127.0.0.1", "localhost", 1),
	} {
		c := newClientT(t, ClientOptions{Servers: []string{first, o.tcp}, Roots: o.roots})
		start := time.Now()
		exchangeT(t, c, "a.test.", dns.TypeA)
		if d := time.Since(start); d >= clientTimeout {
			t.Errorf("%s: %v", name, d)
		}
		c.mu.Lock()
		if c.first != 1 {
			t.Errorf("%s: the second query would go to the bad server first", name)
		}
		c.mu.Unlock()
		exchangeT(t, c, "a.test.", dns.TypeA)
		only := newClientT(t, ClientOptions{Servers: []string{first}, Roots: o.roots})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if b, err := only.Exchange(ctx, mustPack(query("a.test.", dns.TypeA))); err == nil {
			t.Errorf("%s: %x", name, b)
		}
		cancel()
	}
}

func TestLookupNetIP(t *testing.T) {
	o := newOrigin(t)
	c := newClientT(t, ClientOptions{Servers: []string{o.tcp}})
	for name, want := range map[string]string{
		"host.test": "[192.0.2.1 2001:db8::1]", "HOST.test.": "[192.0.2.1 2001:db8::1]", "v4.test": "[192.0.2.1]",
		"alias.test": "[192.0.2.1 2001:db8::1]", "192.0.2.9": "[192.0.2.9]", "none.test": "[]", "loop.test": "[]",
	} {
		got, err := c.LookupNetIP(context.Background(), name)
		if fmt.Sprint(got) != want || (err != nil) != (want == "[]") {
			t.Errorf("%s: %v %v", name, got, err)
		}
		var de *net.DNSError
		if name == "none.test" && (!errors.As(err, &de) || !de.IsNotFound) {
			t.Errorf("%v is not IsNotFound", err)
		}
	}
	c.servers[0].address = "127.0.0.1:1"
	c.Close()
	if got, err := c.LookupNetIP(context.Background(), "host.test"); err != nil || got[0] != netip.MustParseAddr("192.0.2.1") {
		t.Error("not from the cache", got, err)
	}
}

func TestNewClientErrors(t *testing.T) {
	for _, servers := range [][]string{nil, {""}, {"ftp://x"}, {"1.1.1.1", "x"}, {"https://"}} {
		if _, err := NewClient(ClientOptions{Servers: servers}); err == nil {
			t.Error(servers)
		}
	}
}

// A resolver that never answers AAAA costs a lookup a moment, and only one.
// TestServersTokenStaysOut: the path of a server may name an account.
func TestServersTokenStaysOut(t *testing.T) {
	var log bytes.Buffer
	c, err := NewClient(ClientOptions{
		Servers: []string{"https://192.0.2.1/t0ken", "https://192.0.2.1/dns-query?t0ken"},
		Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no way") },
		Log:     slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.LookupNetIP(t.Context(), "a.test")
	if err == nil || strings.Contains(err.Error()+log.String(), "t0ken") || !strings.Contains(log.String(), "no way") {
		t.Errorf("%v\n%s", err, log.String())
	}
	if _, err := NewClient(ClientOptions{Servers: []string{"ftp://t0ken"}}); err == nil || strings.Contains(err.Error(), "t0ken") {
		t.Error(err)
	}
}

func TestLookupNetIPOneFamilySilent(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeA {
			asked.Add(1)
			zone(w, q)
		}
	})}
	go s.ActivateAndServe()
	defer s.Shutdown()
	c := newClientT(t, ClientOptions{Servers: []string{pc.LocalAddr().String()}})
	begin := time.Now()
	for range 3 {
		if got, err := c.LookupNetIP(t.Context(), "host.test"); err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
	}
	if d := time.Since(begin); d >= clientTimeout || asked.Load() != 1 {
		t.Errorf("three lookups took %v and asked %d times", d, asked.Load())
	}
}
