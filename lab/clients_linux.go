package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/net/websocket"
	"golang.org/x/sync/errgroup"
)

// Resolve looks a name up as a program in the node would: by the first
// nameserver of the node's resolv.conf; IPv4 addresses come first.
func (l *Lab) Resolve(ctx context.Context, n Node, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	server, err := l.nameserver(n)
	if err != nil {
		return nil, err
	}
	var answers [2][]netip.Addr
	g, ctx := errgroup.WithContext(ctx)
	for i, kind := range []uint16{dns.TypeA, dns.TypeAAAA} { // at once, as stub resolvers do
		g.Go(func() error {
			m, err := l.Query(ctx, n, "udp", server, name, kind)
			if err == nil {
				answers[i] = addressesIn(m)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	addrs := append(answers[0], answers[1]...)
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, Server: server, IsNotFound: true}
	}
	return addrs, nil
}

func addressesIn(m *dns.Msg) (addrs []netip.Addr) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			addrs = append(addrs, netip.AddrFrom4([4]byte(rr.A.To4())))
		case *dns.AAAA:
			addrs = append(addrs, netip.AddrFrom16([16]byte(rr.AAAA)))
		}
	}
	return addrs
}

func (l *Lab) nameserver(n Node) (string, error) {
	conf, err := dns.ClientConfigFromFile(l.Path(n, "/etc/resolv.conf"))
	if err != nil {
		return "", err
	}
	if len(conf.Servers) == 0 {
		return "", fmt.Errorf("%s has no nameserver", n)
	}
	return net.JoinHostPort(conf.Servers[0], "53"), nil
}

// Query sends one DNS question (network is udp or tcp) from a node; server is
// an address with a port.
func (l *Lab) Query(ctx context.Context, n Node, network, server, name string, kind uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := l.nodes[n].ns.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(1232, false)
	client := dns.Client{Net: network}
	m, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c})
	return m, err
}

// Dial connects from a node to host:port; names resolve as in the node, and
// addresses are tried in order.
func (l *Lab) Dial(ctx context.Context, n Node, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := l.Resolve(ctx, n, host)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	for _, a := range addrs {
		if c, err = l.nodes[n].ns.DialContext(ctx, network, net.JoinHostPort(a.String(), port)); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// Transport is an HTTP client's transport whose connections come from a node
// and which trusts the lab's CA. It keeps connections alive and speaks HTTP/2,
// as browsers do; the caller may change it before use.
func (l *Lab) Transport(n Node) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return l.Dial(ctx, n, network, address)
		},
		TLSClientConfig:     &tls.Config{RootCAs: l.CA.Pool()},
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 256,
		DisableCompression:  true,
	}
}

// FetchOptions for Fetch.
type FetchOptions struct {
	Args []string  // further arguments of curl
	Body io.Reader // uploaded by PUT; nil for a GET
}

// Fetched is what curl made of a request.
type Fetched struct {
	Status  int
	Proto   string // "1.1", "2"
	Bytes   int64
	SHA256  string // of the body
	Head    []byte // the body's first 4 KiB
	Lookup  time.Duration
	Connect time.Duration // since the start: TCP
	TLS     time.Duration // since the start: TLS; 0 without
	First   time.Duration // since the start: first byte of the answer
	Total   time.Duration
}

// Fetch runs curl(1) in a node. An answer with an error status is no error.
func (l *Lab) Fetch(ctx context.Context, n Node, url string, opt FetchOptions) (*Fetched, error) {
	args := []string{"--silent", "--show-error", "--cacert", l.CAFile(), "--noproxy", "", "--no-buffer",
		"--write-out", "%{stderr}%{json}"}
	if opt.Body != nil {
		args = append(args, "--upload-file", "-", "--header", "Expect:")
	}
	cmd := l.Command(n, "curl", append(append(args, opt.Args...), url)...)
	cmd.Stdin = opt.Body
	sum, head := sha256.New(), &limited{max: 4 << 10}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(sum, head), &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	err := cmd.Wait()
	stop()
	text, report, _ := strings.Cut(stderr.String(), "{")
	if err != nil {
		return nil, fmt.Errorf("curl %s: %w: %s", url, err, strings.TrimSpace(text))
	}
	var w struct {
		Code    int     `json:"response_code"`
		Version string  `json:"http_version"`
		Size    int64   `json:"size_download"`
		Lookup  float64 `json:"time_namelookup"`
		Connect float64 `json:"time_connect"`
		TLS     float64 `json:"time_appconnect"`
		First   float64 `json:"time_starttransfer"`
		Total   float64 `json:"time_total"`
	}
	if err := json.Unmarshal([]byte("{"+report), &w); err != nil {
		return nil, fmt.Errorf("curl's report: %w: %q", err, stderr.String())
	}
	d := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	return &Fetched{Status: w.Code, Proto: w.Version, Bytes: w.Size, SHA256: hex.EncodeToString(sum.Sum(nil)),
		Head: head.b, Lookup: d(w.Lookup), Connect: d(w.Connect), TLS: d(w.TLS), First: d(w.First), Total: d(w.Total)}, nil
}

// limited keeps the first max bytes.
type limited struct {
	b   []byte
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), l.max-len(l.b))]...)
	return len(p), nil
}

// WebSocketEcho opens a WebSocket from a node (ws:// or wss://), sends each
// message and checks that it comes back unchanged.
func (l *Lab) WebSocketEcho(ctx context.Context, n Node, rawURL string, messages ...[]byte) error {
	config, err := websocket.NewConfig(rawURL, "http://lab.test/")
	if err != nil {
		return err
	}
	u, err := url.Parse(rawURL)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"ws": "80", "wss": "443"}[u.Scheme]
	}
	c, err := l.Dial(ctx, n, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if u.Scheme == "wss" {
		c = tls.Client(c, &tls.Config{RootCAs: l.CA.Pool(), ServerName: u.Hostname()})
	}
	ws, err := websocket.NewClient(config, c)
	if err != nil {
		return fmt.Errorf("websocket %s: %w", rawURL, err)
	}
	ws.MaxPayloadBytes = 16 << 20
	for i, m := range messages {
		if err := websocket.Message.Send(ws, m); err != nil {
			return fmt.Errorf("websocket message %d: %w", i, err)
		}
		var back []byte
		if err := websocket.Message.Receive(ws, &back); err != nil {
			return fmt.Errorf("websocket message %d: %w", i, err)
		}
		if !bytes.Equal(m, back) {
			return fmt.Errorf("websocket message %d came back changed", i)
		}
	}
	return nil
}

// UDPEcho sends a datagram from a node to an echo server (origin.PortEcho) and
// waits, at most two seconds, for it to come back. It sends once.
func (l *Lab) UDPEcho(ctx context.Context, n Node, address string, payload []byte) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := l.Dial(ctx, n, "udp", address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	start := time.Now()
	if _, err := c.Write(payload); err != nil {
		return 0, err
	}
	back := make([]byte, 64<<10)
	k, err := c.Read(back)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(back[:k], payload) {
		return 0, fmt.Errorf("%d bytes came back changed", k)
	}
	return time.Since(start), nil
}

// Ping sends one ICMP echo request from a node to an address and returns the
// round trip, or an error after two seconds.
func (l *Lab) Ping(n Node, to netip.Addr) (time.Duration, error) {
	network, any, kind, proto := "ip6:ipv6-icmp", "::", icmp.Type(ipv6.ICMPTypeEchoRequest), 58
	if to.Is4() {
		network, any, kind, proto = "ip4:icmp", "0.0.0.0", ipv4.ICMPTypeEcho, 1
	}
	var c *icmp.PacketConn
	if err := l.In(n, func() (err error) {
		c, err = icmp.ListenPacket(network, any)
		return err
	}); err != nil {
		return 0, err
	}
	defer c.Close()
	id := int(time.Now().UnixNano() & 0xffff)
	b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("lab")}}).Marshal(nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	c.SetDeadline(start.Add(2 * time.Second))
	if _, err := c.WriteTo(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return 0, err
	}
	buf := make([]byte, 1500)
	for {
		k, from, err := c.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		m, err := icmp.ParseMessage(proto, buf[:k])
		if err != nil || from.String() != to.String() {
			continue
		}
		if e, ok := m.Body.(*icmp.Echo); ok && m.Type != kind && e.ID == id {
			return time.Since(start), nil
		}
	}
}
