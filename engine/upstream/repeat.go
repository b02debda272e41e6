package upstream

import (
	"bytes"
	"sync/atomic"
)

// repeat says how often the first bytes of a client may reach a server. It is
// the one rule for everything here that tries again or tries beside: a request
// on an idle connection that had died, a request that keeps silent, another
// session, another member of a group.
//
//	always        a ClientHello with nothing after it. It asks for nothing, so it
//	              may be on several ways at once; the first answer counts.
//	afterFailure  the head of a GET, HEAD or OPTIONS request without content. It
//	              may leave ahead of the proxy's answer. It leaves again only
//	              once the connection that it left on has failed, without a byte
//	              of an answer (RFC 9110 section 9.2.2): never because it is
//	              slow, and never beside itself. A long poll would lose its
//	              message to a connection that nobody reads.
//	never         anything else leaves once, when the tunnel stands.
//
// Nothing leaves again once the tunnel stands. What a proxy does with early data
// is asked with bytes of our own: see probe.go.
type repeat uint8

const (
	never repeat = iota
	afterFailure
	always
)

// MayRepeat says that a client's first bytes may be on several ways at once.
func MayRepeat(first []byte) bool { return repeatOf(first) == always }

// repeatOf reads the first bytes of a client.
func repeatOf(b []byte) repeat {
	if len(b) >= 6 && b[0] == tlsHandshake {
		if onlyHello(b) {
			return always
		}
		return never
	}
	for _, method := range [...]string{"GET ", "HEAD ", "OPTIONS "} {
		if bytes.HasPrefix(b, []byte(method)) && headEnd(b, 0) == len(b) && !announcesContent(b) {
			return afterFailure
		}
	}
	return never
}

// once is the right to send bytes ahead that may not be on two ways at once.
// The zero value is free.
type once struct{ taken atomic.Bool }

// take reports whether the right is the caller's now.
func (o *once) take() bool { return o.taken.CompareAndSwap(false, true) }

// The numbers of RFC 8446 sections 4 and 5.1.
const (
	tlsAlert       = 21
	tlsHandshake   = 22
	tlsClientHello = 1
	tlsServerHello = 2
	tlsHeaderBytes = 5
)

// onlyHello says that b is a ClientHello or the beginning of one: data after
// it may be a request already (0-RTT, RFC 8446 section 8).
func onlyHello(b []byte) bool {
	if b[1] != 3 || b[tlsHeaderBytes] != tlsClientHello {
		return false
	}
	for len(b) > 0 {
		if b[0] != tlsHandshake {
			return false
		}
		if len(b) < tlsHeaderBytes {
			return true
		}
		n := tlsHeaderBytes + int(b[3])<<8 + int(b[4])
		b = b[min(n, len(b)):]
	}
	return true
}

// announcesContent says that a request has a body, or seems to.
func announcesContent(head []byte) bool {
	for len(head) > 0 {
		var line []byte
		line, head, _ = bytes.Cut(head, []byte("\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		name = bytes.TrimSpace(name)
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) ||
			bytes.EqualFold(name, []byte("Content-Length")) && string(bytes.TrimSpace(value)) != "0" {
			return true
		}
	}
	return false
}
