package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// serve accepts on loopback and runs handle on each connection until the test
// ends.
func serve(t testing.TB, handle func(c *net.TCPConn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return flow.AddrPortOf(ln.Addr())
}

// echo answers with what it gets, and FIN with FIN.
func echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// splitRelay copies both ways with half-close, as a plain proxy does.
func splitRelay(a, b interface {
	net.Conn
	CloseWrite() error
}, fromA io.Reader) {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		_, _ = io.Copy(b, fromA)
		_ = b.CloseWrite()
	}()
	_, _ = io.Copy(a, b)
	_ = a.CloseWrite()
	wg.Wait()
	b.Close()
}

// httpProxy is an honest HTTP/1.1 CONNECT proxy; user:pass if set.
func httpProxy(auth string) func(net.Conn) {
	return func(c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if auth != "" && req.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(auth)) {
			io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
			return
		}
		out, err := net.Dial("tcp", req.Host)
		if err != nil {
			io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nX-Error-Description: no such target\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
		splitRelay(c.(interface {
			net.Conn
			CloseWrite() error
		}), out.(*net.TCPConn), br)
	}
}

// socksProxy is an honest SOCKS5 proxy with TCP and UDP.
type socksProxy struct {
	user, pass string
	zeroRelay  bool         // say 0.0.0.0 as relay address
	nameRelay  bool         // say "localhost" as relay address
	source     *flow.Target // say this as every datagram's source
	noUDP      byte         // reply to ASSOCIATE, 0: there are associations
	refused    atomic.Int32 // associations
	relays     atomic.Int32 // live associations
	spoof      func(relay *net.UDPConn, client netip.AddrPort)
}

func (p *socksProxy) handle(c *net.TCPConn) {
	b := make([]byte, 512)
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return
	}
	n := int(b[1])
	io.ReadFull(c, b[:n])
	if p.user != "" {
		if !strings.Contains(string(b[:n]), "\x02") {
			c.Write([]byte{5, 0xff})
			return
		}
		c.Write([]byte{5, 2})
		io.ReadFull(c, b[:2])
		user := make([]byte, b[1])
		io.ReadFull(c, user)
		io.ReadFull(c, b[:1])
		pass := make([]byte, b[0])
		io.ReadFull(c, pass)
		if string(user) != p.user || string(pass) != p.pass {
			c.Write([]byte{1, 1})
			return
		}
		c.Write([]byte{1, 0})
	} else {
		c.Write([]byte{5, 0})
	}
	if _, err := io.ReadFull(c, b[:4]); err != nil {
		return
	}
	command, host := b[1], ""
	switch b[3] {
	case 1:
		io.ReadFull(c, b[:4])
		host = net.IP(b[:4]).String()
	case 4:
		io.ReadFull(c, b[:16])
		host = net.IP(b[:16]).String()
	case 3:
		io.ReadFull(c, b[:1])
		n := int(b[0])
		io.ReadFull(c, b[:n])
		host = string(b[:n])
	}
	io.ReadFull(c, b[:2])
	port := int(binary.BigEndian.Uint16(b))
	switch {
	case command == 3 && p.noUDP != 0:
		p.refused.Add(1)
		c.Write([]byte{5, p.noUDP, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	case command == 3:
		p.associate(c)
		return
	}
	out, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	c.Write([]byte{5, 0, 0, 3, 4, 'b', 'n', 'd', '.', 0, 80})
	splitRelay(c, out.(*net.TCPConn), c)
}

func (p *socksProxy) associate(c *net.TCPConn) {
	p.relays.Add(1)
	defer p.relays.Add(-1)
	relay, _ := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	defer relay.Close()
	out, _ := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	defer out.Close()
	ap := flow.AddrPortOf(relay.LocalAddr())
	reply := []byte{5, 0, 0, 1, 127, 0, 0, 1, byte(ap.Port() >> 8), byte(ap.Port())}
	if p.zeroRelay {
		copy(reply[4:8], []byte{0, 0, 0, 0})
	}
	if p.nameRelay {
		reply = appendSOCKSAddr([]byte{5, 0, 0}, flow.Target{Name: "localhost", Port: ap.Port()})
	}
	c.Write(reply)
	var client atomic.Pointer[netip.AddrPort]
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := relay.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			client.Store(&from)
			if p.spoof != nil {
				p.spoof(relay, from)
			}
			t, payload, ok := parseSOCKSDatagram(b[:n])
			if !ok {
				continue
			}
			to := t.AddrPort()
			if t.Name != "" { // every name is this machine
				to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), t.Port)
			}
			out.WriteToUDPAddrPort(payload, to)
		}
	}()
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := out.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			source := flow.TargetOf(from)
			if p.source != nil {
				source = *p.source
				source.Port = min(source.Port, from.Port())
			}
			h := appendSOCKSAddr([]byte{0, 0, 0}, source)
			relay.WriteToUDPAddrPort(append(h, b[:n]...), *client.Load())
		}
	}()
	io.Copy(io.Discard, c)
}

// udpEcho answers each datagram with itself.
func udpEcho(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65535)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return flow.AddrPortOf(c.LocalAddr())
}

// certificate makes a self-signed certificate for names.
func certificate(t testing.TB, notAfter time.Time, names ...string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: notAfter.Add(-24 * time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// overTLS runs handle inside TLS.
func overTLS(cert tls.Certificate, handle func(net.Conn), alpn ...string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: alpn})
		if tc.Handshake() != nil {
			return
		}
		handle(tc)
		tc.Close()
	}
}

// open makes an upstream that the test closes.
func open(t testing.TB, rawURL string, change func(*Spec), o Options) *Upstream {
	t.Helper()
	s, err := proxy.ParseURL("test", rawURL)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&s)
	}
	u, err := New(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
