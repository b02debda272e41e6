// Package route carries flows: it decides by the rules where each one goes,
// dials, and copies bytes both ways until both ends are done.
//
//	Flow ─► decide ─┬─ block ──────────────────────────► Reject
//	  fake → name   ├─ port 53 from the TUN ───────────► DNS
//	  rules, LAN    ├─ auto, via, direct ─► DialStream ─► Accept ─► relay
//	                ├─ with early data ───► Accept ─► first bytes ─► DialStream ─► relay
//	                └─ UDP ───────────────► DialPackets: one association per
//	                                        path and app socket
//
// The upstream is dialled before the app's handshake is completed, so that a
// dead target looks dead: the app sees a refusal, never silence. Where the
// upstream carries early data the order is turned round, which saves a round
// trip: the app is accepted, its first bytes leave together with the request
// to the proxy, and a dead target looks like a connection that was reset. Not so
// for the local proxy: SOCKS5 and CONNECT promise a connection by their answer,
// and an app that waits for it gets a true one, a round trip later. What an app
// has said without waiting (flow.Spoken) leaves early all the same.
//
// Where both ends of a stream are kernel sockets the bytes are spliced; see
// relay.go. Counters are lock-free and live while a flow runs.
//
// engine imports this; it imports rules, upstream and flow.
package route

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// UDPPolicy says what becomes of UDP that no rule sends elsewhere.
type UDPPolicy uint8

const (
	// UDPAuto: through the upstream if it carries UDP. Otherwise every datagram
	// is refused at once, so that browsers leave QUIC for TCP; none leaks.
	UDPAuto   UDPPolicy = iota
	UDPBlock            // refused
	UDPDirect           // straight to the target
)

// Options are what a Handler works with. Current and Direct must be set.
type Options struct {
	Rules   *rules.Set                                // nil: everything is Auto
	Current func() *upstream.Upstream                 // carries Auto; may change between flows; never returns nil
	Named   func(name string) *upstream.Upstream      // nil if there is none of that name
	Direct  *upstream.Upstream                        // carries Direct
	UDP     UDPPolicy                                 //
	Local   func(name string, a netip.Addr) bool      // is this machine or in its network (by its name alone if a is not valid): direct, unless a rule says otherwise; may be nil
	Resolve func(netip.Addr) (name string, fake bool) // of a fake address, or one that a name was seen to have; may be nil
	// Addresses are those of a name, as asked through u; none if the name is not
	// to be tried by address. May be nil.
	Addresses func(ctx context.Context, u *upstream.Upstream, name string) ([]netip.Addr, error)
	DNS       flow.Handler                                         // gets flows to port 53 that came by the TUN; may be nil
	Blocked   func() bool                                          // true: everything but DNS is refused; may be nil
	Process   func(network string, src, dst netip.AddrPort) string // path of the program that owns a socket; may be nil
	// Owner tells whose a socket is, as platform.Owners does; nil if the system
	// cannot: then all apps have the service's rights.
	Owner func(network string, local, remote netip.AddrPort) (uid uint32, ok bool)
	// Observe is told the outcome of each dial, err nil on success. It must not
	// block. It is not called for dials that the app or we gave up. May be nil.
	Observe func(u *upstream.Upstream, err error)
	Log     *slog.Logger // nil: silent
}

// Counters are totals since New, but for Open. Lookups that DNS has answered are
// no flows.
type Counters struct {
	Open                 int64  // flows now
	Total                uint64 // flows that came
	Refused              uint64 // of these, not carried because the upstream or the target did not take them
	Blocked              uint64 // not carried because of a rule, the UDP policy or Blocked
	Up, Down             uint64 // payload bytes through upstreams
	DirectUp, DirectDown uint64 // payload bytes straight to targets
	// Datagrams, but for the queries that DNS took. What an app has sent is
	// counted in one of UDPUp, UDPBlocked and UDPLost, or by the inbound side.
	UDPUp, UDPDown uint64 // given to an upstream or a target, and to apps
	UDPLost        uint64 // that a socket did not take, either way, or that nobody can have meant
	UDPBlocked     uint64 // datagrams not sent because the upstream carries no UDP, or the policy or a rule forbids it
	Carried        uint64 // connections that an upstream proxy has taken
	Reused         uint64 // of these, without a new TCP or TLS handshake in their path
	Warm           uint64 // on a connection that had been made ahead
	Early          uint64 // flows whose first bytes left together with the request to the proxy
}

// Handler is the flow.Handler behind all inbound sides.
type Handler struct {
	opts Options

	open                    atomic.Int64
	total, refused, blocked atomic.Uint64
	udpBlocked              atomic.Uint64
	carried, reused         atomic.Uint64
	udpUp, udpDown, udpLost atomic.Uint64
	warm, early             atomic.Uint64
	viaBytes, directBytes   traffic
	phases                  phases
	talkers                 talkers
	live                    sync.Map // uint64 ID → *live
	errs                    lastErrors
	lot                     atomic.Pointer[lot] // nil: flows do not rest
	resting, rested         atomic.Int64        // relays that rest now, and rests since New
	chunks, datagrams       sync.Pool           // *[chunkBytes]byte, *[datagramBytes]byte
	pushes                  sync.Pool           // *[maxPush]flow.Datagram
}

// traffic counts payload bytes.
type traffic struct{ up, down atomic.Uint64 }

// New makes a Handler. It starts nothing.
func New(o Options) *Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handler{opts: o}
	h.chunks.New = func() any { return new([chunkBytes]byte) }
	h.pushes.New = func() any { return new([maxPush]flow.Datagram) }
	h.datagrams.New = func() any { return new([datagramBytes]byte) }
	return h
}

// Counters is a snapshot; its fields are read one after the other.
func (h *Handler) Counters() Counters {
	return Counters{
		Open: h.open.Load(), Total: h.total.Load(), Refused: h.refused.Load(), Blocked: h.blocked.Load(),
		Up: h.viaBytes.up.Load(), Down: h.viaBytes.down.Load(),
		DirectUp: h.directBytes.up.Load(), DirectDown: h.directBytes.down.Load(),
		UDPUp: h.udpUp.Load(), UDPDown: h.udpDown.Load(), UDPLost: h.udpLost.Load(),
		UDPBlocked: h.udpBlocked.Load(), Carried: h.carried.Load(), Reused: h.reused.Load(),
		Warm: h.warm.Load(), Early: h.early.Load(),
	}
}

// LastError says why the last failed flow to host failed, "" if none is
// remembered. A success forgets it.
func (h *Handler) LastError(host string) string { return h.errs.get(host) }

func reasonOf(err error) flow.Reason {
	var e *upstream.Error
	if errors.As(err, &e) && e.Reason != 0 {
		return e.Reason
	}
	return flow.Unreachable
}

func (h *Handler) count(d decision) {
	if d.blocked {
		h.blocked.Add(1)
		return
	}
	h.refused.Add(1)
	h.errs.put(d.target.Host(), d.verdict.Rule)
}

// CarriesUDP says whether there is any way for UDP: by default, or because a
// rule leads somewhere that carries it.
func (h *Handler) CarriesUDP(ctx context.Context) bool {
	o := &h.opts
	if o.UDP == UDPDirect || o.UDP == UDPAuto && o.Current().CarriesUDP(ctx) {
		return true
	}
	return o.Rules.Any(func(kind flow.VerdictKind, name string) bool {
		if kind == flow.Via && o.Named != nil {
			u := o.Named(name)
			return u != nil && u.CarriesUDP(ctx)
		}
		return kind == flow.Direct
	})
}

var _ flow.Handler = (*Handler)(nil)
