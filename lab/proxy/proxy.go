// Package proxy is the lab's own upstream proxies, small and fast, in-process:
//
//	HTTP    CONNECT in plain text (RFC 9110 section 9.3.6)
//	HTTPS   the same inside TLS; HTTP/2 CONNECT (RFC 9113 section 8.5) by ALPN
//	SOCKS5  CONNECT and UDP ASSOCIATE (RFC 1928, RFC 1929)
//
// They count what they are asked for, so that tests can compute reuse, and
// misbehave on request (Fault). Names resolve in the lab's zone. Sockets are
// opened through a Network. Anything in the lab may import it.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Scheme is what an app or engine has to speak to the proxy.
type Scheme string

const (
	HTTP   Scheme = "http"
	HTTPS  Scheme = "https"
	SOCKS5 Scheme = "socks5"
)

// Fault is a way to misbehave; it can be changed while the proxy runs and
// holds for connections and requests that begin afterwards.
type Fault int32

const (
	None    Fault = iota
	Auth          // 407, or SOCKS5 status 01 to any password
	HTML          // 200 with a web page in place of a proxy's answer; SOCKS5: the page at once
	Refuse        // 502 to each CONNECT; SOCKS5 reply 05 (connection refused)
	Silent        // accepts the connection and never answers
	Hangup        // closes each connection as soon as it is accepted
	Reset         // resets each connection as soon as it is accepted
	BadCert       // HTTPS: a certificate for another name
	Forbid        // HTTP: 403 to each CONNECT
)

// handshakeTimeout bounds how long a client may take to say what it wants.
const handshakeTimeout = 30 * time.Second

// dialTimeout bounds the connection to a target.
const dialTimeout = 10 * time.Second

// Network opens sockets; *netns.NS is one.
type Network interface {
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
	DialFrom(ctx context.Context, from netip.Addr, network, address string) (net.Conn, error)
}

// Options of Start.
type Options struct {
	Network Network
	Scheme  Scheme
	Listen  netip.AddrPort // port 0 picks one
	// From4 and From6 are the proxy's source addresses towards targets, as
	// targets see them; zero leaves it to the kernel.
	From4, From6   netip.Addr
	User, Password string // "" asks for none
	// Admit judges each login in place of User and Password; nil: they do.
	Admit func(user, password string) bool
	// Cert and WrongCert (for BadCert) serve HTTPS.
	Cert, WrongCert tls.Certificate
	HTTP1Only       bool // HTTPS: do not offer HTTP/2
	NoUDP           bool // SOCKS5: UDP ASSOCIATE is answered with 07
	// DropEarly loses what a client sends before it is told that its CONNECT
	// has succeeded, as some proxies do; HTTP/2 streams carry it all the same.
	DropEarly bool
	// Forwards has requests for http:// URLs fetched, as squid and Apache do:
	// those too that follow a refused CONNECT on a connection that is kept.
	Forwards bool
	Resolve  func(name string) []netip.Addr
	Log      *slog.Logger
}

// Counters only grow, but for Open.
type Counters struct {
	Accepted   atomic.Int64 // TCP connections
	Handshakes atomic.Int64 // TLS handshakes, or SOCKS5 negotiations, completed
	Connects   atomic.Int64 // CONNECT requests read, good or bad
	Served     atomic.Int64 // CONNECT requests that were answered with success
	Forwarded  atomic.Int64 // requests fetched, see Options.Forwards
	UDP        atomic.Int64 // UDP associations
	Datagrams  atomic.Int64 // relayed, both ways
	Open       atomic.Int64 // TCP connections now
}

// Proxy is one running proxy.
type Proxy struct {
	Counters Counters
	Delay    atomic.Int64 // nanoseconds to wait before each CONNECT is answered

	opt   Options
	ln    net.Listener
	fault atomic.Int32
	group errgroup.Group
	done  chan struct{} // closed by Close
	once  sync.Once     // of Close

	mu    sync.Mutex
	conns map[io.Closer]struct{} // everything open; guarded by mu, nil once closed
}

// Start listens, and serves until Close.
func Start(opt Options) (*Proxy, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	ln, err := opt.Network.Listen("tcp", opt.Listen.String())
	if err != nil {
		return nil, fmt.Errorf("%s proxy: %w", opt.Scheme, err)
	}
	p := &Proxy{opt: opt, ln: ln, done: make(chan struct{}), conns: map[io.Closer]struct{}{}}
	p.group.Go(p.accept)
	return p, nil
}

// SetFault makes the proxy misbehave from now on; None ends that.
func (p *Proxy) SetFault(f Fault) { p.fault.Store(int32(f)) }

func (p *Proxy) is(f Fault) bool { return Fault(p.fault.Load()) == f }

// Addr is where the proxy listens.
func (p *Proxy) Addr() netip.AddrPort { return p.ln.Addr().(*net.TCPAddr).AddrPort() }

// URL is the proxy as users write it, with percent-encoded credentials.
func (p *Proxy) URL() string {
	u := url.URL{Scheme: string(p.opt.Scheme), Host: p.Addr().String()}
	if p.opt.User != "" {
		u.User = url.UserPassword(p.opt.User, p.opt.Password)
	}
	return u.String()
}

// CutAll closes every open connection, as a restart of the proxy would.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Close stops listening, cuts all connections and waits. It is idempotent.
func (p *Proxy) Close() error {
	p.once.Do(func() { close(p.done) })
	p.ln.Close()
	p.mu.Lock()
	for c := range p.conns {
		c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	return p.group.Wait()
}

// track has Close and CutAll close c; it refuses once the proxy is closing.
func (p *Proxy) track(c io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) untrack(c io.Closer) {
	c.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

func (p *Proxy) accept() error {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			select {
			case <-p.done:
				return nil
			default:
				return fmt.Errorf("%s proxy: %w", p.opt.Scheme, err)
			}
		}
		p.Counters.Accepted.Add(1)
		if !p.track(c) {
			return nil
		}
		p.group.Go(func() error {
			p.Counters.Open.Add(1)
			defer p.Counters.Open.Add(-1)
			defer p.untrack(c)
			if err := p.serve(c.(*net.TCPConn)); err != nil {
				p.opt.Log.Debug("proxy connection ended", "scheme", p.opt.Scheme, "client", c.RemoteAddr(), "err", err)
			}
			return nil
		})
	}
}

func (p *Proxy) serve(c *net.TCPConn) error {
	switch Fault(p.fault.Load()) {
	case Hangup:
		return nil
	case Reset:
		return c.SetLinger(0)
	case Silent:
		io.Copy(io.Discard, c) // until the client gives up, or Close
		return nil
	}
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	switch p.opt.Scheme {
	case SOCKS5:
		return p.serveSOCKS(c)
	case HTTPS:
		return p.serveTLS(c)
	}
	return p.serveHTTP1(c)
}

// dial connects to host, a name of the zone or an address literal.
func (p *Proxy) dial(host string, port uint16) (net.Conn, error) {
	addrs, err := p.resolve(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	for _, a := range addrs {
		from := p.opt.From6
		if a.Is4() {
			from = p.opt.From4
		}
		var c net.Conn
		c, err = p.opt.Network.DialFrom(ctx, from, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
		if err == nil {
			return c, nil
		}
	}
	return nil, err
}

var errNoName = errors.New("name does not resolve")

func (p *Proxy) resolve(host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	if p.opt.Resolve != nil {
		if addrs := p.opt.Resolve(host); len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", errNoName, host)
}
