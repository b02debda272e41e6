package flow

import "time"

// The timers of the data path that an app can come to feel, each with its
// reason. A TCP connection that is set up has none: silent or half closed, it
// lives as long as both its ends do, and keep-alive probes tell when one is gone.
// What upstream's pools, sessions and proofs time for themselves is beside them.
const (
	// DialWithin is for TCP to one address, TLSWithin for the handshake of TLS,
	// HandshakeWithin for that of the proxy protocol, ResolveWithin for a name that
	// is not resolved at the far end; SetupWithin is for all of them together: an
	// app of the TUN whose SYN is held sends two more by then (RFC 6298).
	DialWithin      = 5 * time.Second
	TLSWithin       = 5 * time.Second
	HandshakeWithin = 10 * time.Second
	ResolveWithin   = 5 * time.Second
	SetupWithin     = 15 * time.Second
	// NextAddressAfter is when the next address of a name is tried beside the one
	// before (RFC 8305 section 5).
	NextAddressAfter = 250 * time.Millisecond
	// SessionDeadAfter ends an HTTP/2 session, and all its streams, whose proxy
	// has not answered a PING for so long; SessionSuspectAfter sends new requests
	// elsewhere.
	SessionDeadAfter    = 10 * time.Second
	SessionSuspectAfter = 2 * time.Second

	// AcceptWithin is for the handshake between this machine's kernel and an app
	// that has been let in: three lost SYNs or ACKs (RFC 6298).
	AcceptWithin = 15 * time.Second
	// FirstWait is how long an app that was let in first may take for its first
	// bytes: apps that speak first do so at once, the others lose no more.
	FirstWait = time.Millisecond
	// SniffWithin is how long an app that was let in on port 53 may take to ask
	// something: clients of DNS ask at once, clients of a server that speaks first
	// wait so much longer.
	SniffWithin = 100 * time.Millisecond
	// SettleWithin is how long a connection that is to be reset may take to
	// deliver what was written to it before: nginx's lingering_time.
	SettleWithin = 30 * time.Second

	// KeepAliveIdle and KeepAliveInterval are for connections with apps: their
	// probes keep the translation's and conntrack's entries alive, which go after
	// IdleTranslation, and after 60 s where conntrack knows of one FIN. The other
	// end is this machine's own kernel, so KeepAliveCount unanswered ones say
	// that it has forgotten the connection.
	KeepAliveIdle     = 45 * time.Second
	KeepAliveInterval = 15 * time.Second
	KeepAliveCount    = 4
	// FarKeepAliveIdle, -Interval and -Count are for connections into the network:
	// often enough for a NAT on the way, and given up as late as a NAT may forget
	// an idle connection (RFC 5382 REQ-5: two hours and four minutes): it outlives
	// a network that was away.
	FarKeepAliveIdle     = 45 * time.Second
	FarKeepAliveInterval = time.Minute
	FarKeepAliveCount    = 124
	// IdleTranslation is after how much silence the kernel path forgets a
	// connection: longer than keep-alive takes to find out, so that the entry
	// never dies before the connection.
	IdleTranslation = 5 * time.Minute
	// TranslationTimeWait is how long it knows a closed one, for the last ACK and
	// repeated FINs. Both ends are in this machine: nothing is later.
	TranslationTimeWait = 4 * time.Second

	// UDPIdle ends a UDP session that was answered and has been silent, either
	// way, for so long (RFC 4787 REQ-5 recommends it), UDPIdleUnanswered one that
	// was not yet (the same: no less than two minutes).
	UDPIdle           = 5 * time.Minute
	UDPIdleUnanswered = 2 * time.Minute
	// UDPIdleDNS ends one that has asked port 53 only (REQ-5 a: well-known ports
	// may be shorter), and QueryWithin a query: resolvers ask again after 5 s.
	UDPIdleDNS  = 10 * time.Second
	QueryWithin = 10 * time.Second
	// UDPRetry is between two associations for one destination, of which the
	// first failed or ended.
	UDPRetry = time.Second
	// ReassembleWithin is for the fragments of one packet; they come from this
	// machine (RFC 1122 section 3.3.2 has 60 s for a network).
	ReassembleWithin = 30 * time.Second

	// SayWithin is how long an app of the local proxy may take to say what it
	// wants, and to take our answer: no program that means us is slower.
	SayWithin = 10 * time.Second
	// AppIdle is how long its connection is kept between two plain HTTP requests,
	// and TargetIdle one to a target: less than the two minutes after which many
	// servers close. A request that is under way has no limit, nor has its answer.
	AppIdle    = 2 * time.Minute
	TargetIdle = 90 * time.Second
	// LingerWithin is for an app of the local proxy that has its last answer and
	// does not close (RFC 9112 section 9.6).
	LingerWithin = time.Second

	// EndWithin is how long flows may take to say goodbye when the TUN closes.
	EndWithin = 2 * time.Second
)
