package flow

import "net/netip"

// Refuser is what the net.PacketConn given to Handler.HandlePackets may have
// beside its methods, where the inbound side can tell an app that a datagram
// was refused (the TUN can, by ICMP; SOCKS5 cannot).
type Refuser interface {
	// Refuse tells the app that nobody answers at dst: ICMP port unreachable
	// (RFC 792) or its ICMPv6 equal (RFC 4443 section 3.1), as if dst had sent
	// it. Apps see "connection refused" on a connected socket, which makes
	// browsers leave QUIC for TCP at once. It does not block and the session
	// goes on.
	Refuse(dst netip.AddrPort)
}

// RefusalTeller is what a net.PacketConn towards targets may have beside its
// methods, where it hears that a target refuses datagrams (ICMP port
// unreachable).
type RefusalTeller interface {
	// OnRefused has f called with each such target from now on. f must not block.
	OnRefused(f func(target netip.AddrPort))
}

// ReadWaiter is what the net.PacketConn given to Handler.HandlePackets may have
// beside its methods, where it can be waited for without a buffer: a Handler
// with thousands of idle sockets needs no memory for what may come.
type ReadWaiter interface {
	// WaitRead blocks until ReadFrom has a datagram. It fails as ReadFrom does
	// when the deadline passes and when the socket is closed.
	WaitRead() error
}

// Datagram is one UDP payload and its other end: where it is to go, or where it
// came from.
type Datagram struct {
	Data []byte
	Addr netip.AddrPort // unmapped; if Name is set, only its port counts
	Name string         // lower case, see NameAddr; "" where Addr says all
}

// Pusher is what the net.PacketConn given to Handler.HandlePackets may have
// beside its methods, where datagrams can be dealt with on the goroutine that
// has them from the kernel: no queue and no wake-up lie between.
type Pusher interface {
	// Push has f called with what the app sends from now on, in order; nil ends
	// that. f must not block and keeps nothing of what it is given. It returns
	// how many of ms, from the first, it has dealt with; the rest waits for
	// ReadFrom, and f is not called again before ReadFrom has taken all of it.
	// Calls of f may overlap where the system reads in parallel, and one may
	// still be under way when Push(nil) returns.
	Push(f func(ms []Datagram) int)
}

// BatchSender is what a net.PacketConn may have beside its methods, on either
// side of a Handler: several datagrams in few system calls.
type BatchSender interface {
	// Send is WriteTo for each of ms, but never blocks and keeps nothing of what
	// it is given. It returns how many of them, from the first, it is done with
	// (those that WriteTo would have blocked for, or that first need a resolver,
	// are left), and how many of these were lost to an error, which is the last
	// one's.
	Send(ms []Datagram) (done, lost int, err error)
}

// BatchReceiver is what a net.PacketConn may have beside its methods, where
// bursts can be read in few system calls and an idle socket needs no buffer.
type BatchReceiver interface {
	// Receive calls f, which must not block for long, with each burst that
	// arrives until the socket fails or is closed; it then returns why, as
	// ReadFrom would. What f is given is valid during the call only.
	Receive(f func(ms []Datagram)) error
}
