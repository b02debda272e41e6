// Package listener is the local proxy: HTTP and SOCKS5 on one loopback port,
// for apps that are told to use a proxy instead of (or beside) the TUN.
//
//	          ┌ 0x05 ─► socks5.go, udp.go ────────────────┐
//	app ─TCP──┤ CONNECT ─► http.go ─► connect.go ─────────┼─► flow.Handler
//	          ├ other HTTP ─► http.go ─► forward.go ─ dial ┘   (engine/route)
//	          └ anything else is refused
//
// The first byte of a connection decides. What an app asks for becomes a
// flow.Flow and a flow.Pending, as it does for packets in the TUN; the app is
// answered only after the Handler has accepted or rejected it, and what it has
// said beyond its request by then is flow.Spoken.
//
// Plain HTTP is read and written by ourselves (head.go, request.go, body.go) and
// not by net/http. Its server and Transport take a request apart and put another
// one together: they refuse or change paths that are no valid URL but what the
// server signed ("/100%", "/a|b"), refuse answers that every browser reads, and
// pool connections without telling whose login is on them. What is passed on here
// is what came, but for the fields of each hop (RFC 9110 section 7.6) and the
// framing, which is written anew where it was read in one way only. Connections to
// targets are kept for further requests of the same user (targets.go). A
// kept-alive request takes 46 µs of processor time, client and origin included,
// where net/http took 79 (BenchmarkPlainHTTP, 2026-11-27).
//
// The Handler gets the app's *net.TCPConn itself wherever no byte beyond the
// handshake has been read, so that copying can splice; else what it gets is a
// flow.Unwrapper.
//
// Only engine imports this package.
package listener

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/internal/fair"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

const (
	// maxSilent bounds the connections that have not said it yet, and those that
	// have nothing to say for now. For more the user with most of them loses one.
	maxSilent = 1024
	// maxHeaderBytes bounds an HTTP request's head, maxAnswerHead a response's.
	maxHeaderBytes = 64 << 10
	maxAnswerHead  = 256 << 10
	// lingerBytes bounds what is read of an app that has its last answer, so that
	// this is not lost to a reset (RFC 9112 section 9.6).
	lingerBytes = 256 << 10
)

// Options are what a Listener is made from.
type Options struct {
	Address string // host:port; the host must be a loopback address or "localhost"
	Handler flow.Handler
	// App names the app whose socket is src, connected to dst; "" if it cannot
	// tell. Plain HTTP requests of different apps share no connection to a
	// target then, which matters where the way of a flow depends on its app. It
	// is asked once for each connection, and may take milliseconds. Nil: all
	// apps share.
	App func(src, dst netip.AddrPort) string
	// CarriesUDP says whether there is any way for UDP. Where there is none, UDP
	// ASSOCIATE is refused. Nil: there is.
	CarriesUDP func(context.Context) bool
	// User tells whose socket src, connected to dst, is; false if there is none,
	// or it cannot be told. Users share no connection to a target, and the places
	// of those that say nothing are shared between users. It is asked once for a
	// connection with plain HTTP requests, or when places run short, and takes
	// microseconds. Nil: all are one user.
	User func(n flow.Network, src, dst netip.AddrPort) (uid uint32, ok bool)
	Log  *slog.Logger
}

// Listener is a bound port. Connections wait in the kernel's queue until Run.
type Listener struct {
	opts  Options
	tcp   *net.TCPListener
	close func() error           // closes tcp, once
	run   atomic.Pointer[server] // nil before Run
}

// control is the net.ListenConfig.Control of the listener.
func control(network, address string, c syscall.RawConn) error {
	return errors.Join(onLoopback(network, address, c), flow.UrgentInline(network, address, c))
}

// Listen binds at once. errors.Is(err, syscall.EADDRINUSE) tells a taken port.
func Listen(o Options) (*Listener, error) {
	if o.Handler == nil || o.Log == nil {
		return nil, errors.New("listener: Handler and Log must be set")
	}
	addr, err := loopback(o.Address)
	if err != nil {
		return nil, err
	}
	// An app on this machine does not vanish in silence: keep-alives would only
	// cost each connection four system calls.
	l, err := (&net.ListenConfig{Control: control, KeepAlive: -1}).Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listen for the local proxy on %s: %w", o.Address, err)
	}
	return &Listener{opts: o, tcp: l.(*net.TCPListener), close: sync.OnceValue(l.Close)}, nil
}

// loopback parses address and insists that nobody but this machine reaches it:
// there is no password, so that anything else would be an open proxy.
func loopback(address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("proxy address %q: want host:port, such as 127.0.0.1:7890", address)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ap, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("proxy address %q: want an IP address and a port, such as 127.0.0.1:7890", address)
	}
	if !ap.Addr().Unmap().IsLoopback() {
		return netip.AddrPort{}, fmt.Errorf("proxy address %q: the local proxy has no password and listens on loopback only; use 127.0.0.1:%s or [::1]:%s", address, port, port)
	}
	return ap, nil
}

// Addr is the address that is bound.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Close unbinds the port, which ends Run. It is idempotent.
func (l *Listener) Close() error { return l.close() }

// Forget keeps the connections that are open to targets from serving further
// requests, as when another upstream is in use: each new one opens a flow.
func (l *Listener) Forget() {
	if s := l.run.Load(); s != nil {
		s.targets.forget()
	}
}

// Run serves until ctx ends or Close is called (it then returns nil), or the
// socket fails. It returns after every flow has ended, and is called once.
func (l *Listener) Run(ctx context.Context) error {
	defer l.close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.close() })
	defer stop()

	s := newServer(l.opts)
	l.run.Store(s)
	err := l.accept(ctx, s)
	cancel()
	s.targets.close()
	s.running.Wait()
	if ctxErr := context.Cause(ctx); errors.Is(err, net.ErrClosed) && ctxErr != nil {
		return nil
	}
	return err
}

func (l *Listener) accept(ctx context.Context, s *server) error {
	for {
		conn, err := l.tcp.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return net.ErrClosed
			}
			l.opts.Log.Warn("local proxy cannot accept a connection", "err", err)
			select { // out of descriptors: it passes
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		s.running.Go(func() { s.serve(ctx, conn) })
	}
}

// server is one Run.
type server struct {
	opts    Options
	targets targets
	silent  *fair.Places[owner]
	running sync.WaitGroup // everything that Run waits for
	readers sync.Pool      // *bufio.Reader for what apps say
	chunks  sync.Pool      // *chunk
}

func newServer(o Options) *server {
	s := &server{opts: o, silent: fair.New[owner](maxSilent)}
	s.readers.New = func() any { return bufio.NewReaderSize(nil, 4096) }
	s.chunks.New = func() any { return new(chunk) }
	return s
}

// owner is whose a socket is.
type owner struct {
	uid   uint32
	known bool
}

// serve carries one connection until it ends.
func (s *server) serve(ctx context.Context, conn *net.TCPConn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	conn.SetReadDeadline(time.Now().Add(flow.SayWithin))
	app := &client{TCPConn: conn, s: s, buf: s.readers.Get().(*bufio.Reader)}
	app.wait()
	defer app.said()
	app.buf.Reset(conn)
	defer app.rest()
	first, err := app.buf.Peek(1)
	if err != nil {
		conn.Close()
		return
	}
	switch b := first[0]; {
	case b == 0x05:
		s.serveSOCKS5(ctx, app)
	case b == 0x04:
		s.opts.Log.Debug("an app speaks SOCKS4 to the local proxy; it needs SOCKS5 or HTTP", "app", conn.RemoteAddr())
		app.refuse([]byte{0, 0x5b, 0, 0, 0, 0, 0, 0}) // "request rejected or failed"
	case b == 0x16:
		s.opts.Log.Debug("an app speaks TLS to the local proxy; give it http://, not https://", "app", conn.RemoteAddr())
		conn.Close()
	default:
		s.serveHTTP(ctx, app)
	}
}

// client is an app's connection while we read what it says to us.
type client struct {
	*net.TCPConn
	s     *server
	buf   *bufio.Reader // nil after rest
	early []byte        // what was read beyond the handshake, once buf is nil
	place *fair.Place[owner]
}

// Read takes what is buffered first. It is not used after rest.
func (c *client) Read(p []byte) (int, error) { return c.buf.Read(p) }

// wait takes a place among those who say nothing; said gives it back.
func (c *client) wait() { c.place = c.s.silent.Enter(c.owner, func() { c.TCPConn.Close() }) }

func (c *client) said() { c.place.Leave() }

// owner is whose connection it is.
func (c *client) owner() (o owner) {
	if user := c.s.opts.User; user != nil {
		o.uid, o.known = user(flow.TCP, c.addr(), c.door())
	}
	return o
}

// addr is the app's end.
func (c *client) addr() netip.AddrPort { return flow.AddrPortOf(c.RemoteAddr()) }

// door is ours.
func (c *client) door() netip.AddrPort { return flow.AddrPortOf(c.LocalAddr()) }

// rest ends the handshake: it returns the bytes that were read beyond it, and
// gives the buffer back, which is not for idle flows to hold.
func (c *client) rest() []byte {
	if c.buf != nil {
		c.early = slices.Clone(unread(c.buf))
		c.buf.Reset(nil)
		c.s.readers.Put(c.buf)
		c.buf = nil
	}
	return c.early
}

// unread is what is in the buffer of r.
func unread(r *bufio.Reader) []byte {
	b, _ := r.Peek(r.Buffered())
	return b
}

// stream is the connection after the handshake: the socket itself, unless bytes
// that follow the handshake have been read already.
func (c *client) stream() flow.StreamConn {
	c.SetDeadline(time.Time{})
	if early := c.rest(); len(early) > 0 {
		return &prefixed{TCPConn: c.TCPConn, prefix: early}
	}
	return c.TCPConn
}

// spoken ends the handshake and takes what the app has said beyond it.
func (c *client) spoken() []byte {
	early := c.rest()
	c.early = nil
	return early
}

// refuse sends answer and closes the connection in a way that the app gets it.
func (c *client) refuse(answer []byte) {
	c.said()
	c.SetDeadline(time.Now().Add(flow.LingerWithin))
	if _, err := c.Write(answer); err != nil {
		c.Close()
		return
	}
	c.hangUp()
}

// hangUp closes the connection in a way that the app gets what was written last,
// whatever it is about to say itself (RFC 9112 section 9.6).
func (c *client) hangUp() {
	defer c.Close()
	c.SetDeadline(time.Now().Add(flow.LingerWithin))
	c.CloseWrite()
	io.CopyN(io.Discard, c.TCPConn, lingerBytes)
}

// prefixed is a *net.TCPConn from which some bytes have been read already.
type prefixed struct {
	*net.TCPConn
	prefix []byte // not yet delivered; used by the one reader only
}

var _ flow.Unwrapper = (*prefixed)(nil)

// Read delivers the prefix first.
func (c *prefixed) Read(p []byte) (int, error) {
	if len(c.prefix) == 0 {
		return c.TCPConn.Read(p)
	}
	n := copy(p, c.prefix)
	c.prefix = c.prefix[n:]
	return n, nil
}

// WriteTo delivers the prefix first; the rest may splice.
func (c *prefixed) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.prefix)
	c.prefix = c.prefix[n:]
	if err != nil {
		return int64(n), err
	}
	rest, err := c.TCPConn.WriteTo(w)
	return int64(n) + rest, err
}

// Unwrap implements flow.Unwrapper.
func (c *prefixed) Unwrap() ([]byte, *net.TCPConn) { return c.prefix, c.TCPConn }

// newTarget makes a flow.Target of what an app asked for.
func newTarget(host string, port uint16) (flow.Target, error) {
	if port == 0 {
		return flow.Target{}, errors.New("port 0 cannot be reached")
	}
	name, addr, err := proxy.ParseHost(host)
	if err != nil && strings.Contains(host, "%") { // a neighbour on this link has a zone
		addr, err = netip.ParseAddr(host)
	}
	return flow.Target{Name: name, Addr: addr, Port: port}, err
}

func newFlow(n flow.Network, in flow.Inbound, src, door netip.AddrPort, t flow.Target) flow.Flow {
	f := flow.Flow{ID: flow.NextID(), Network: n, Inbound: in, Src: src, Door: door, Target: t, Start: time.Now()}
	if t.Addr.IsValid() {
		f.Dst = t.AddrPort()
	}
	return f
}
