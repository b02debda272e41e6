package flow

import "net"

// Unwrapper is what a StreamConn may have beside its methods if it stands for a
// kernel socket of which more was read than the handshake: some apps send their
// first bytes along with the request for the flow.
type Unwrapper interface {
	// Unwrap returns what was read of the socket and not yet delivered by Read,
	// and the socket itself, which the caller owns from then on; the wrapper is
	// not to be used any more. The bytes come before all that the socket gives.
	Unwrap() (read []byte, socket *net.TCPConn)
}

// Unwrap returns the kernel socket below c, so that it can be spliced, and the
// bytes that come before those it gives. Without a socket below, it returns c.
func Unwrap(c StreamConn) (read []byte, socket StreamConn) {
	if w, ok := c.(Unwrapper); ok {
		return w.Unwrap()
	}
	return nil, c
}
