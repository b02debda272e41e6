// Package origin is the far end of the lab's internet: the servers that apps
// talk to, in-process, on IPv4 and IPv6.
//
//	port 80, 443  HTTP/1.1 and HTTP/2 (443): /bytes /sink /ws /hls /slow /ip /proto
//	port 53       authoritative DNS of *.test, UDP and TCP (on its own address)
//	port 7        echo, TCP and UDP         port 7001  answers after the client's FIN
//	port 9        discard, TCP and UDP      port 7002  resets
//	port 19       character generator       port 7003  accepts, and is silent
//
// It opens sockets through a Network, so it runs in a namespace or, in its own
// tests, on the loopback. Anything in the lab may import it.
package origin

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Ports of the servers beside 53, 80 and 443.
const (
	PortEcho      = 7
	PortDiscard   = 9
	PortChargen   = 19
	PortHalfClose = 7001
	PortReset     = 7002
	PortSilent    = 7003
)

// Network opens listening sockets; *netns.NS is one.
type Network interface {
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
}

// Options of Start.
type Options struct {
	Network Network
	// Addrs are the addresses that every server but DNS listens on.
	Addrs []netip.Addr
	// DNS are the addresses of the name server.
	DNS  []netip.Addr
	Zone *Zone
	Cert tls.Certificate
	Log  *slog.Logger
}

// Counters tell what the servers have seen; they only grow.
type Counters struct {
	TCP       atomic.Int64 // connections accepted, all ports
	Requests  atomic.Int64 // HTTP
	Queries   atomic.Int64 // DNS
	Datagrams atomic.Int64 // UDP, without DNS
}

// Server runs all origins. Close ends it.
type Server struct {
	Counters Counters

	opt     Options
	done    chan struct{} // closed by Close
	once    sync.Once     // of Close
	group   errgroup.Group
	closers []func() error // listeners and servers; set by Start only

	mu    sync.Mutex
	conns map[net.Conn]struct{} // open raw connections; guarded by mu
}

// Start opens all sockets and serves until Close.
func Start(opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opt: opt, done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	for _, a := range opt.Addrs {
		if err := s.serveAddr(a); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	for _, a := range opt.DNS {
		if err := s.serveDNS(a); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Close stops all servers, cuts their connections and waits. It is idempotent.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.done) })
	for _, c := range s.closers {
		c()
	}
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	return s.group.Wait()
}

func (s *Server) serveAddr(a netip.Addr) error {
	if err := s.serveHTTP(a); err != nil {
		return err
	}
	for port, handle := range map[uint16]func(net.Conn){
		PortEcho: echo, PortDiscard: discard, PortChargen: chargen,
		PortHalfClose: halfClose, PortReset: reset, PortSilent: s.silent,
	} {
		if err := s.serveTCP(a, port, handle); err != nil {
			return err
		}
	}
	for port, reply := range map[uint16]bool{PortEcho: true, PortDiscard: false} {
		if err := s.serveUDP(a, port, reply); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) serveHTTP(a netip.Addr) error {
	// A Server each: http.Server sets HTTP/2 up once, for its first listener.
	for _, port := range []uint16{80, 443} {
		srv := &http.Server{
			Handler:   s.handler(),
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.opt.Cert}},
			ErrorLog:  slog.NewLogLogger(s.opt.Log.Handler(), slog.LevelDebug),
			ConnState: func(_ net.Conn, state http.ConnState) {
				if state == http.StateNew {
					s.Counters.TCP.Add(1)
				}
			},
		}
		ln, err := s.listen(a, port)
		if err != nil {
			return err
		}
		serve := srv.Serve
		if port == 443 {
			serve = func(ln net.Listener) error { return srv.ServeTLS(ln, "", "") }
		}
		s.group.Go(func() error {
			if err := serve(ln); !s.closing() {
				return err
			}
			return nil
		})
		s.closers = append(s.closers, srv.Close)
	}
	return nil
}

func (s *Server) listen(a netip.Addr, port uint16) (net.Listener, error) {
	ln, err := s.opt.Network.Listen("tcp", net.JoinHostPort(a.String(), strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("origin: %w", err)
	}
	s.closers = append(s.closers, ln.Close)
	return ln, nil
}

func (s *Server) closing() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}
