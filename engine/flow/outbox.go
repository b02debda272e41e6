package flow

// Outbox is what a StreamConn may have beside its methods if it is no kernel
// socket and knows what its peer has got.
type Outbox interface {
	// Unacked reports whether something that was written, or the FIN, is not
	// acknowledged yet: a reset would destroy it. It is asked of a connection
	// that nobody writes to any more.
	Unacked() bool
	// Gone reports that the connection is no more, by a reset or for want of
	// answers: nothing will ever be acknowledged.
	Gone() bool
}
