package netstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// redirect is the second carrier of TCP beside the translation (tcp.go): the
// system takes connections that would enter the TUN to this listener on
// loopback (platform.NetConfig.Redirect), so their packets never leave the
// kernel. It cannot hold a SYN: when we hear of a connection it is established.
//
//	app ──► X:dp   nat output: redirect   ──► 127.x.y.z:port ──► redirect ──► Handler
//
// The translation serves everything that is not redirected, so the redirect may
// come and go.
type redirect struct {
	k         *kernel
	listeners []*net.TCPListener // on all of loopback
	port      uint16             // of all

	once  sync.Once      // closes end
	end   chan struct{}  // closed when it and its flows are to end
	flows sync.WaitGroup // added to by the accepting goroutines only
	ended chan struct{}  // closed when all have
}

const (
	redirectTries = 8 // ports, until one is free for both families
)

// newRedirect opens the listeners.
func newRedirect(k *kernel) (*redirect, error) {
	var err error
	for range redirectTries {
		r := &redirect{k: k, end: make(chan struct{}), ended: make(chan struct{})}
		if err = r.listen(); err == nil {
			return r, nil
		}
		r.close()
	}
	return nil, fmt.Errorf("listen for redirected connections: %w", err)
}

func (r *redirect) listen() error {
	for _, f := range r.k.families() {
		lc := net.ListenConfig{Control: listenerOptions("lo"), KeepAlive: -1} // accepted connections inherit it
		network, host := "tcp4", "0.0.0.0"
		if f.v6 { // its packets do not seem to come by lo, but nobody else reaches ::1
			network, host, lc.Control = "tcp6", "::1", listenerOptions("")
		}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(int(r.port))))
		if err != nil {
			return err
		}
		r.listeners = append(r.listeners, l.(*net.TCPListener))
		r.port = flow.AddrPortOf(l.Addr()).Port()
	}
	return nil
}

func (r *redirect) close() {
	for _, l := range r.listeners {
		l.Close()
	}
}

// run accepts redirected connections until ctx or end, and returns when their
// flows have ended.
func (r *redirect) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(r.ended)
	var accepting sync.WaitGroup
	for _, l := range r.listeners {
		accepting.Go(func() { acceptAll(r.k, l, func(c *net.TCPConn) { r.take(ctx, c) }) })
	}
	select {
	case <-ctx.Done():
	case <-r.end:
	}
	cancel()
	r.close()
	accepting.Wait()
	r.flows.Wait()
}

// take makes a flow of a connection. One that nobody redirected was made by
// somebody who has found the port: it is refused.
func (r *redirect) take(ctx context.Context, c *net.TCPConn) {
	dst, err := originalDst(c)
	if err != nil || dst == flow.AddrPortOf(c.LocalAddr()) {
		r.k.counters.refused.Add(1)
		abort(c)
		return
	}
	src := flow.AddrPortOf(c.RemoteAddr())
	if r.k.familyOf(addrOf(dst.Addr())).isProbe(src, dst) {
		_, _ = c.Write([]byte{0}) // the translation answers without a byte
		c.Close()
		return
	}
	a := &redirected{conn: c}
	r.flows.Add(1)
	if !r.k.spawn(func() {
		defer r.flows.Done()
		r.k.handler.HandleStream(ctx, flow.Flow{
			ID: flow.NextID(), Network: flow.TCP, Inbound: flow.TUN,
			Src: src, Dst: dst, Target: flow.TargetOf(dst), Start: time.Now(),
		}, a)
		a.Reject(flow.Refused) // nothing, if the handler has decided
	}) {
		r.flows.Done()
		abort(c)
	}
}

// redirected is the flow.Pending of a connection that is established already.
// Like every Pending it belongs to one goroutine.
type redirected struct{ conn *net.TCPConn }

var _ flow.Pending = (*redirected)(nil)

// Accept implements flow.Pending; it does not wait.
func (a *redirected) Accept() (flow.StreamConn, error) {
	c := a.conn
	if c == nil {
		return nil, errDecided
	}
	a.conn = nil
	return c, nil
}

// Reject implements flow.Pending by RST.
func (a *redirected) Reject(flow.Reason) {
	if a.conn != nil {
		abort(a.conn)
		a.conn = nil
	}
}

// abort closes c by RST.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// acceptAll gives every connection of l to take, until l is closed.
func acceptAll(k *kernel, l *net.TCPListener, take func(*net.TCPConn)) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			take(c)
		case errors.Is(err, net.ErrClosed):
			return
		default: // out of files: those that wait time out
			k.log.Error("accept a connection of an app", "err", err)
			select {
			case <-k.done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

// RedirectPort is the loopback port that takes redirected connections
// (platform.NetConfig.Redirect); 0 if this stack takes none.
func (s *Stack) RedirectPort() uint16 {
	if k, ok := s.carrier.(*kernel); ok && k.redirect != nil {
		return k.redirect.port
	}
	return 0
}

// ProbeRedirect opens a connection of its own, and reports whether it came by
// the redirect. Run must be running.
func (s *Stack) ProbeRedirect(ctx context.Context) error {
	k, ok := s.carrier.(*kernel)
	if !ok || k.redirect == nil {
		return errors.New("this stack takes no redirected connections")
	}
	return k.probe(ctx, probeWithin, func(c net.Conn) error {
		if flow.AddrPortOf(c.RemoteAddr()).Addr().Is6() && !hasLoopback6() {
			return nil // nowhere to redirect it to: IPv6 stays in the TUN
		}
		_ = c.SetReadDeadline(time.Now().Add(probeWithin))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return fmt.Errorf("a connection to %v was not redirected: %w", c.RemoteAddr(), err)
		}
		return nil
	})
}

// hasLoopback6 tells whether ::1 is there: IPv6 may be off at lo and on elsewhere.
func hasLoopback6() bool {
	c, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// EndRedirected resets the flows that came by the redirect and takes no more.
// It is for the moment before the system ceases to translate them: what is sent
// afterwards would not reach the apps. It waits for them, no longer than two
// seconds.
func (s *Stack) EndRedirected() {
	k, ok := s.carrier.(*kernel)
	if !ok || k.redirect == nil {
		return
	}
	r := k.redirect
	r.once.Do(func() { close(r.end) })
	select {
	case <-r.ended:
	case <-time.After(flow.EndWithin):
		k.log.Warn("redirected flows are slow to end", "after", flow.EndWithin)
	}
}
