package dns

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

const (
	clientTimeout = 5 * time.Second
	hedgeAfter    = time.Second // a silent server gets company after this
	udpRetry      = time.Second
	wholeTimeout  = 2 * time.Second // for an answer over TCP, when there is a cut one already
	preferFor     = 5 * time.Minute // see preferred
	maxIdleConns  = 4               // per TCP or TLS server
	connIdle      = 20 * time.Second
	plainFor      = 15 * time.Minute // a server that refused EDNS is asked without it
)

// ClientOptions of a Client.
type ClientOptions struct {
	// Servers in the order of preference: https:// (RFC 8484), tls:// (RFC
	// 7858), tcp://, udp://, or an address alone, which means UDP and, for
	// long answers or where UDP cannot be dialled, TCP.
	Servers []string
	// Dial opens connections to servers. A server that is given by name is
	// dialled by name.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Roots are trusted for https and tls; nil means the system's.
	Roots *x509.CertPool
	Log   *slog.Logger
}

// Client asks DNS servers. It is safe for concurrent use.
type Client struct {
	servers []*server
	log     *slog.Logger

	mu    sync.Mutex
	first int                   // index of the server that answered last; guarded by mu
	until time.Time             // when the first configured one gets another chance; guarded by mu
	addrs map[string]knownAddrs // of LookupNetIP; guarded by mu
}

// server is one server and its connections.
type server struct {
	name    string // for people
	scheme  string
	address string // host:port
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	tls     *tls.Config
	url     string // https
	http    *http.Client

	plainUntil atomic.Int64 // Unix nanoseconds: the server has refused EDNS

	mu     sync.Mutex
	idle   []idleConn // guarded by mu
	closed bool       // guarded by mu
}

type idleConn struct {
	net.Conn
	since time.Time
}

// NewClient makes a Client; it connects to nothing.
func NewClient(o ClientOptions) (*Client, error) {
	if len(o.Servers) == 0 {
		return nil, errors.New("no DNS server is configured")
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{log: o.Log, addrs: map[string]knownAddrs{}}
	for i, text := range o.Servers {
		s, err := newServer(text, o)
		if err != nil {
			return nil, fmt.Errorf("DNS server %d: %w", i+1, err)
		}
		c.servers = append(c.servers, s)
	}
	return c, nil
}

func newServer(text string, o ClientOptions) (*server, error) {
	s := &server{name: text, scheme: "udp", dial: o.Dial}
	if a, err := netip.ParseAddr(text); err == nil {
		s.address = net.JoinHostPort(a.String(), "53")
		return s, nil
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		s.address = ap.String()
		return s, nil
	}
	at, err := proxy.ParseServer(text)
	if err != nil {
		return nil, err
	}
	s.name, s.scheme, s.address = at.String(), at.Scheme, at.Addr() // the url may hold an account's token
	s.tls = &tls.Config{ServerName: at.Host, RootCAs: o.Roots, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	if s.scheme == "https" {
		s.url = at.URL()
		s.http = newHTTP(s)
	}
	return s, nil
}

// Exchange sends a packed query to the preferred server, and to the next ones
// if it fails or is silent for a second; the first sound answer wins. It takes
// at most 5 s. Answers with another ID or question are dropped.
func (c *Client) Exchange(ctx context.Context, query []byte) ([]byte, error) {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil || len(q.Question) != 1 {
		return nil, errors.New("not a query with one question")
	}
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	type result struct {
		reply  []byte
		server int
		err    error
	}
	results := make(chan result, len(c.servers))
	started, pending := 0, 0
	first := c.preferred()
	start := func() {
		i := (first + started) % len(c.servers)
		started++
		pending++
		wg.Go(func() {
			reply, err := c.servers[i].exchange(ctx, q)
			results <- result{reply, i, err}
		})
	}
	start()
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	var refusal []byte // SERVFAIL and the like, if nobody knows better
	var errs []error
	for pending > 0 {
		select {
		case <-hedge.C:
			if started < len(c.servers) {
				start()
			}
		case r := <-results:
			pending--
			if r.err == nil {
				if rcode := r.reply[3] & 0xf; rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError {
					c.prefer(r.server)
					return r.reply, nil
				}
				refusal = r.reply
			} else {
				errs = append(errs, fmt.Errorf("%s: %w", c.servers[r.server].name, r.err))
				c.log.Debug("dns: server failed", "server", c.servers[r.server].name, "err", r.err)
			}
			if started < len(c.servers) && ctx.Err() == nil {
				start()
			}
		}
	}
	if refusal != nil {
		return refusal, nil
	}
	return nil, fmt.Errorf("ask DNS: %w", errors.Join(errs...))
}

// preferred is the server to ask first: the one that answered last, but every
// few minutes the first configured one again.
func (c *Client) preferred() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().After(c.until) {
		c.first, c.until = 0, time.Now().Add(preferFor)
	}
	return c.first
}

func (c *Client) prefer(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first != i {
		c.first, c.until = i, time.Now().Add(preferFor)
	}
}

// Close closes the connections that are kept.
func (c *Client) Close() {
	for _, s := range c.servers {
		if s.http != nil {
			s.http.CloseIdleConnections()
		}
		s.mu.Lock()
		s.closed = true
		for _, conn := range s.idle {
			conn.Close()
		}
		s.idle = nil
		s.mu.Unlock()
	}
}
