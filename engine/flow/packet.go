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

// ReadWaiter is what the net.PacketConn given to Handler.HandlePackets may have
// beside its methods, where it can be waited for without a buffer: a Handler
// with thousands of idle sockets needs no memory for what may come.
type ReadWaiter interface {
	// WaitRead blocks until ReadFrom has a datagram. It fails as ReadFrom does
	// when the deadline passes and when the socket is closed.
	WaitRead() error
}
