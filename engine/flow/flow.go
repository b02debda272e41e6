// Package flow holds the few types that every part of the data path shares.
//
//	netstack ─┐
//	          ├─ Flow + Pending ─► Handler (engine/route) ─► upstream dialers
//	listener ─┘
//
// A Flow is one conversation an app has opened: a TCP connection, or the UDP
// datagrams of one local socket. Whoever received it (the TUN's netstack or the
// local proxy listener) describes it with a Flow and hands it to a Handler;
// the Handler owns it until it ends.
//
// This is a leaf: it imports nothing of ours and anything may import it.
package flow

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"
)

// Network says how a flow carries bytes.
type Network uint8

const (
	TCP Network = iota + 1
	UDP
)

func (n Network) String() string {
	switch n {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "unknown"
}

// Inbound says by which door a flow came in.
type Inbound uint8

const (
	TUN    Inbound = iota + 1 // a packet in the TUN device
	HTTP                      // the local HTTP proxy
	SOCKS5                    // the local SOCKS5 proxy
)

func (i Inbound) String() string {
	switch i {
	case TUN:
		return "tun"
	case HTTP:
		return "http"
	case SOCKS5:
		return "socks5"
	}
	return "unknown"
}

// Target is where an app wants to go. At least one of Name and Addr is set;
// the port is never zero for a target that can be dialled.
type Target struct {
	// Name is the host name the app used, lower case, without a trailing dot;
	// "" when only the address is known. Upstreams are given the name when
	// there is one, so that it is resolved at the far end.
	Name string
	// Addr is the destination address; the zero Addr when only Name is known.
	// It is never a fake address (see engine/dns) once a Handler has seen it.
	Addr netip.Addr
	Port uint16
}

// Host is the name if there is one, else the address, without brackets.
func (t Target) Host() string {
	if t.Name != "" {
		return t.Name
	}
	if t.Addr.IsValid() {
		return t.Addr.String()
	}
	return ""
}

// String is "host:port", with brackets around IPv6 addresses.
func (t Target) String() string {
	return net.JoinHostPort(t.Host(), strconv.Itoa(int(t.Port)))
}

// AddrPort is the address and port; its Addr is invalid if only a name is known.
func (t Target) AddrPort() netip.AddrPort { return netip.AddrPortFrom(t.Addr, t.Port) }

// TargetOf makes the Target of an address without a name. IPv4-mapped
// addresses are unmapped.
func TargetOf(ap netip.AddrPort) Target {
	return Target{Addr: ap.Addr().Unmap(), Port: ap.Port()}
}

// Flow describes one conversation. It is a value: copies are cheap and safe.
type Flow struct {
	ID      uint64 // unique in this process, see NextID
	Network Network
	Inbound Inbound
	Src     netip.AddrPort // the app's end
	// Dst is the destination as the app saw it (it may be a fake address).
	Dst netip.AddrPort
	// Door is the address of ours that an app of the local proxy has connected,
	// or sends its datagrams, to; invalid by the TUN, where that is Dst.
	Door netip.AddrPort
	// Target is where it leads. For UDP it is the first datagram's destination;
	// later datagrams of the same socket may go elsewhere.
	Target Target
	Start  time.Time
}

var lastID atomic.Uint64

// NextID returns a new flow ID, starting at 1.
func NextID() uint64 { return lastID.Add(1) }

// StreamConn is a net.Conn whose two directions close separately (RFC 9293
// section 3.6). *net.TCPConn is one, and where both ends of a copy are
// *net.TCPConn the kernel moves the bytes (splice(2) on Linux).
type StreamConn interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
}

var _ StreamConn = (*net.TCPConn)(nil)

// Reason is why a flow is refused. The inbound side turns it into what an app
// understands: a TCP reset, an ICMP message, a SOCKS5 or HTTP error.
type Reason uint8

const (
	Refused     Reason = iota + 1 // the target or the upstream refused
	Unreachable                   // no route, name does not resolve
	TimedOut                      // nobody answered in time
	Forbidden                     // a rule, or the state Blocked, says no
)

func (r Reason) String() string {
	switch r {
	case Refused:
		return "refused"
	case Unreachable:
		return "unreachable"
	case TimedOut:
		return "timed out"
	case Forbidden:
		return "forbidden"
	}
	return "unknown"
}

// Pending is a stream whose opener is still waiting for an answer. Exactly one
// of Accept and Reject is called, once.
type Pending interface {
	// Accept completes the handshake with the app and returns the connection,
	// which the caller then owns. It blocks until the app's side is
	// established, at most 15 seconds; it fails if the app has gone away.
	Accept() (StreamConn, error)
	// Reject refuses the app in the way its protocol has (RST for TCP in the
	// TUN, unless reason is better told by ICMP).
	Reject(Reason)
}

// Spoken is what a Pending has beside its methods where the app speaks a protocol
// of its own to us before the flow: it waits for a true answer, and does not take
// Accept for one that can be had ahead. What it has said to the target already
// may leave with the request to the upstream all the same.
type Spoken interface {
	// Spoken returns that, nil if it is nothing. Whoever calls it sends it to the
	// target: it does not come again by what Accept returns. The slice is the
	// caller's.
	Spoken() []byte
}

// Handler carries flows. Both methods block until the flow has ended, and own
// closing what they were given. They are called on a goroutine of their own.
// They end soon after ctx is cancelled.
type Handler interface {
	HandleStream(ctx context.Context, f Flow, p Pending)
	// HandlePackets carries the datagrams of one local UDP socket. ReadFrom on
	// app returns a datagram and the destination the app sent it to; WriteTo
	// sends a datagram to the app as if it came from the address given
	// (*net.UDPAddr in both). A datagram longer than the buffer is truncated.
	HandlePackets(ctx context.Context, f Flow, app net.PacketConn)
}

// VerdictKind is what a rule decides.
type VerdictKind uint8

const (
	Auto   VerdictKind = iota // through the upstream in use
	Direct                    // straight to the target, by the physical network
	Block                     // refused
	Via                       // through the upstream that Verdict.Upstream names
)

// Verdict is the decision of the rules about one flow.
type Verdict struct {
	Kind     VerdictKind
	Upstream string // the upstream's name if Kind is Via
	Named    bool   // that rule names the target, by domain or cidr
	Rule     string // which rule decided, for people: "rule 3: domain_suffix example.com", "default"
}

func (v Verdict) String() string {
	switch v.Kind {
	case Direct:
		return "direct"
	case Block:
		return "block"
	case Via:
		return v.Upstream
	}
	return "auto"
}
