// Package upstream dials targets through proxies: one dialer per protocol
// behind two one-method interfaces.
//
//	             ┌ direct   ─ TCP, UDP to the target itself
//	             ├ connect  ─ HTTP/1.1 CONNECT, plain or over TLS (RFC 9110 section 9.3.6)
//	Upstream ────┼ h2       ─ HTTP/2 CONNECT over TLS (RFC 9113 section 8.5), package h2
//	 (Spec,      └ socks5   ─ RFC 1928, 1929; UDP ASSOCIATE in socks5udp
//	  stats,           │
//	  errors)          └──► netDialer: resolve, race addresses, Options.Control on every socket
//
// Streams and packets are separate because CONNECT carries no UDP: whether an
// upstream has a PacketDialer is a fact that routing decides by.
//
// Where a stream leaves over plain TCP, what DialStream returns is the
// *net.TCPConn itself, and not one byte beyond the proxy's answer has been
// read from it, so that a relay can splice.
//
// An error is an *Error, which tells the upstream's faults from the target's,
// or wraps context.Canceled when the caller gave up.
//
// engine and engine/route import this; it imports engine/flow, engine/proxy,
// engine/resolve and engine/upstream/h2 only. A group (NewGroup) is an Upstream
// too: it picks a member for each flow. See pool.go for what is kept warm, and
// probe.go for how early data is found out about.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// StreamDialer opens TCP streams to targets.
type StreamDialer interface {
	// DialStream connects to t and sends early, the client's first bytes if any
	// were read already. It blocks for at most 15 seconds and ends soon after
	// ctx does. The caller owns the connection.
	DialStream(ctx context.Context, t flow.Target, early []byte) (flow.StreamConn, error)
}

// PacketDialer opens UDP associations.
type PacketDialer interface {
	// DialPackets opens an association for the datagrams of one app socket, of
	// which t is the first destination. WriteTo takes *net.UDPAddr or NameAddr;
	// ReadFrom gives the real source. The caller owns it.
	DialPackets(ctx context.Context, t flow.Target) (net.PacketConn, error)
}

// NameAddr is a UDP destination known by name; the upstream resolves it.
type NameAddr = flow.NameAddr

// Options are what dialers need from outside. The zero value is usable.
type Options struct {
	// Control is called on every socket before it connects (net.Dialer.Control),
	// to keep it out of the TUN. Nil: sockets are left as they are.
	Control func(network, address string, c syscall.RawConn) error
	// Resolve finds the addresses of upstreams' names. Nil: the system's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// ResolveTarget finds those of targets, when direct. Nil: Resolve.
	ResolveTarget func(ctx context.Context, name string) ([]netip.Addr, error)
	// EarlyChanged is told of a new verdict on early data, on the goroutine of
	// the flow that led to it: it must not block. For a group, it is given what
	// stands for the gateway: Spec and Early. Nil: nobody is told.
	EarlyChanged func(*Upstream)
	// EarlyKnown gives the verdict of an earlier run on a group's gateway, which s
	// names without credentials. Nil: none is known. See Upstream.SetEarly.
	EarlyKnown func(s Spec) Verdict
	// PoolMax is how many warm connections may be kept. 0: 64; negative: none.
	PoolMax int
	Log     *slog.Logger // nil: silent
}

// protocol is what each dialer gives an Upstream.
type protocol interface {
	// open gives a stream to a.t on which a.early has been sent.
	open(ctx context.Context, a ask) (flow.StreamConn, error)
	// check does what Upstream.Check says, with the credentials of s. Its error
	// may be of Kind Target.
	check(ctx context.Context, s *Spec) error
	// ready says how long it takes until the proxy is ready for a request.
	ready(ctx context.Context) (time.Duration, error)
	flush(again bool) // what Upstream.Flush says, or Upstream.Rest
	close()           // what Upstream.Close says
}

// Upstream is one way to the Internet. All methods may be called at any time
// by any goroutine.
type Upstream struct {
	spec    Spec
	streams protocol
	packets PacketDialer // nil if it carries no UDP
	noUDP   atomic.Int64 // unix ns until when UDP is not tried: the proxy has refused it
	udpSeen atomic.Bool  // it has given an association since it was last flushed
	stats   counters
	prover  *prover // of early data; nil if there is none
	group   *group  // nil if it is one proxy
	net     *netDialer

	// hold keeps streams usable until release is called.
	hold func() (release func())
}

// New makes the upstream that s describes; it opens nothing.
func New(s Spec, o Options) (*Upstream, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("upstream %q: %w", s.Name, err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	nd := &netDialer{opts: o}
	u := &Upstream{spec: s, net: nd, hold: func() func() { return func() {} }}
	switch s.Scheme {
	case proxy.Direct:
		if o.ResolveTarget != nil {
			nd.opts.Resolve = o.ResolveTarget
		}
		d := &direct{net: nd, stats: &u.stats}
		u.streams, u.packets = d, packets{u, d}
		return u, nil
	case proxy.SOCKS5:
		d := newSOCKS5(nd, s, &u.stats)
		u.streams, u.packets = d, packets{u, d}
	case proxy.HTTP:
		u.streams = newConnect(nd, s, &u.stats)
	case proxy.HTTPS:
		u.streams = newSecure(nd, s, &u.stats)
	}
	u.prover = &prover{off: s.NoEarly}
	if o.EarlyChanged != nil {
		u.prover.changed = func() { o.EarlyChanged(u) }
	}
	return u, nil
}

// Spec is what New was given.
func (u *Upstream) Spec() Spec { return u.spec }

// Stats is a snapshot; of a group, RTT is that of who carried the last flow.
func (u *Upstream) Stats() Stats {
	s := u.stats.snapshot()
	switch d := u.streams.(type) {
	case *secure:
		s.Sessions = d.sessions()
	case *group:
		d.members.stats(&s)
		if m := d.last.Load(); m != nil {
			s.RTT = time.Duration(m.connections().rtt.Load())
		}
	}
	return s
}

// Flush drops every connection that is kept for flows to come, as when the
// network has changed under them. Flows that are open go on.
func (u *Upstream) Flush() {
	u.forgetUDP()
	u.streams.flush(true)
}

// Rest is Flush without making anything ahead again before the next flow.
func (u *Upstream) Rest() {
	u.forgetUDP()
	u.streams.flush(false)
}

func (u *Upstream) forgetUDP() {
	u.noUDP.Store(0)
	u.udpSeen.Store(false)
}

// Close ends sessions that streams share, and with them their streams.
// Connections of their own are the caller's. It is idempotent.
func (u *Upstream) Close() error {
	if u.prover != nil {
		u.prover.close()
	}
	u.streams.close()
	return nil
}

// DialStream implements StreamDialer.
func (u *Upstream) DialStream(ctx context.Context, t flow.Target, early []byte) (flow.StreamConn, error) {
	if t.Host() == "" || t.Port == 0 || len(t.Name) > maxHostBytes {
		return nil, u.wrap(ctx, targetFault(flow.Unreachable, fmt.Errorf("target %q cannot be dialled", clip(t.String(), 300))))
	}
	tr := traceOf(ctx)
	bounded, cancel := context.WithTimeout(WithTrace(ctx, tr), setupTimeout)
	defer cancel()
	c, err := u.dial(bounded, ask{spec: &u.spec, t: t, early: early})
	if err != nil {
		return nil, u.wrap(ctx, err)
	}
	u.stats.alive()
	if tr.Endpoint == "" {
		tr.Endpoint = u.spec.Name
	}
	u.stats.flows.Add(1)
	if tr.Reused {
		u.stats.reused.Add(1)
	}
	if tr.Warm {
		u.stats.warmHits.Add(1)
	}
	if tr.Early {
		u.stats.early.Add(1)
	}
	return c, nil
}

// dial sends early in the order that the verdict allows, and has the proxy
// asked where there is none.
func (u *Upstream) dial(ctx context.Context, a ask) (flow.StreamConn, error) {
	if u.prover == nil {
		return u.streams.open(ctx, a)
	}
	ahead, probe := u.prover.choose(a.early)
	a.ahead = ahead
	c, err := u.streams.open(ctx, a)
	if ahead && err == nil && traceOf(ctx).refused {
		u.prover.lost()
	}
	switch {
	case probe && err == nil:
		u.prover.spawn(u.streams, a, u.hold())
	case probe:
		u.prover.fail()
	}
	return c, err
}

// Packets is nil if this upstream cannot carry UDP at all, or has refused to less
// than resolve.UDPAgain ago. Flush and Rest forget such a refusal.
func (u *Upstream) Packets() PacketDialer {
	switch {
	case u.group != nil && !u.group.r.UDP(), time.Now().UnixNano() < u.noUDP.Load():
		return nil
	}
	return u.packets
}

// CarriesUDP says whether UDP can be carried, for those who have to promise it
// before there is a datagram. Where nobody knows yet it asks for an association
// and gives it back; a failure that says nothing of UDP is no refusal.
func (u *Upstream) CarriesUDP(ctx context.Context) bool {
	p := u.Packets()
	if p == nil || u.udpSeen.Load() {
		return p != nil
	}
	c, err := p.DialPackets(ctx, flow.Target{})
	if err == nil {
		_ = c.Close()
	}
	return !refusesUDP(err)
}

// packets adds the upstream's name and statistics to a protocol's PacketDialer.
type packets struct {
	u *Upstream
	d PacketDialer
}

func (p packets) DialPackets(ctx context.Context, t flow.Target) (net.PacketConn, error) {
	bounded, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	c, err := p.d.DialPackets(bounded, t)
	if err != nil {
		if p.u.group == nil && refusesUDP(err) { // a group's members are remembered by its resolver
			p.u.noUDP.Store(time.Now().Add(resolve.UDPAgain).UnixNano())
		}
		return nil, p.u.wrap(ctx, err)
	}
	p.u.udpSeen.Store(true)
	p.u.stats.alive()
	p.u.stats.flows.Add(1)
	return c, nil
}

// Check finds out whether the upstream is alive and accepts our credentials,
// without using it for anything: SOCKS5 negotiates and authenticates; the HTTP
// kinds ask for a tunnel to example.com:443 and close it. A target that cannot
// be reached through the proxy does not count against it, and neither does
// silence on a CONNECT, which is waited for 1.5 seconds: many proxies answer it
// only once the target has. It does not end a row of failures either. Silence in
// a TLS or SOCKS5 handshake is a failure after 5 seconds. Direct is always alive.
func (u *Upstream) Check(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	err := u.streams.check(bounded, &u.spec)
	var e *Error
	if err != nil && !(errors.As(err, &e) && e.Kind == Target) {
		return u.wrap(ctx, err)
	}
	if !errors.Is(err, errSilent) {
		u.stats.alive()
	}
	return nil
}

// CheckEndpoint is Check for one endpoint of a group, and keeps what it has
// made warm: it verifies an identity before flows move to it.
func (u *Upstream) CheckEndpoint(ctx context.Context, e *resolve.Endpoint) error {
	bounded, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	err := errors.New("it is not a group")
	if u.group != nil {
		err = u.group.checkOne(bounded, e)
	}
	var fe *Error
	if err == nil || errors.As(err, &fe) && fe.Kind == Target {
		return nil
	}
	return fmt.Errorf("check %s by upstream %q: %w", e.Name, u.spec.Name, err)
}

// Probe measures how long it takes until the gateway of a group's endpoint is
// ready for a request (resolve.Options.Probe).
func (u *Upstream) Probe(ctx context.Context, e *resolve.Endpoint) (time.Duration, error) {
	if u.group == nil {
		return u.streams.ready(ctx)
	}
	return u.group.members.ready(ctx, e)
}

// wrap names the upstream in an error and counts it, unless the caller gave up.
func (u *Upstream) wrap(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("dial by upstream %q: %w", u.spec.Name, context.Canceled)
	}
	var e *Error
	if !errors.As(err, &e) {
		e = talkFault("dial", err)
	}
	named := *e
	named.Upstream = u.spec.Name
	if named.FromUpstream() {
		u.stats.failed(&named)
	} else {
		u.stats.alive()
	}
	return &named
}

func (d *direct) check(context.Context, *Spec) error           { return nil }
func (d *direct) ready(context.Context) (time.Duration, error) { return 0, nil }
func (d *direct) flush(bool)                                   {}
func (d *direct) close()                                       {}

var (
	_ StreamDialer = (*Upstream)(nil)
	_ PacketDialer = packets{}
	_ protocol     = (*direct)(nil)
)
