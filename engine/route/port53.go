package route

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Port 53 is not only DNS. Our resolver answers queries, to whatever server;
// everything else that an app sends there is a flow like any other: transfers,
// NOTIFY and UPDATE to a server that was named, WireGuard and TLS that hope for
// an open port, servers that speak first.

// toDNS: what apps send to port 53 may be for our own resolver.
func (h *Handler) toDNS(in flow.Inbound, port uint16) bool {
	return h.opts.DNS != nil && in == flow.TUN && port == 53
}

// answersItself reports whether DNS has to answer whatever is sent to ap: the
// address is one of ours, behind which there is nobody else.
func (h *Handler) answersItself(a netip.Addr) bool {
	if h.opts.Resolve == nil {
		return false
	}
	name, fake := h.opts.Resolve(a)
	return fake && name == ""
}

// isQuery: the datagram p to ap is for our own resolver.
func (h *Handler) isQuery(in flow.Inbound, ap netip.AddrPort, p []byte) bool {
	return h.toDNS(in, ap.Port()) && (queryType(p) > 0 || h.answersItself(ap.Addr()))
}

const (
	dnsHeadBytes = 12
	typeSOA      = 6
	typeIXFR     = 251
	typeAXFR     = 252
)

// queryType is the type that the DNS message m asks for, if it is an ordinary
// query (RFC 1035 section 4.1): one question, no transfer. 0 is anything else.
func queryType(m []byte) uint16 {
	if len(m) < dnsHeadBytes {
		return 0
	}
	flags, question, answer := binary.BigEndian.Uint16(m[2:]), binary.BigEndian.Uint16(m[4:]), binary.BigEndian.Uint16(m[6:])
	const response, opcode, reserved, rcode = 0x8000, 0x7800, 0x0040, 0x000f
	if flags&(response|opcode|reserved|rcode) != 0 || question != 1 || answer != 0 {
		return 0
	}
	m = m[dnsHeadBytes:]
	for len(m) > 0 && m[0] != 0 { // the name
		n := int(m[0]) + 1
		if n > 64 || n > len(m) { // a compressed name has nothing before it to point to
			return 0
		}
		m = m[n:]
	}
	if len(m) < 5 {
		return 0
	}
	switch t := binary.BigEndian.Uint16(m[1:]); t {
	case typeIXFR, typeAXFR:
		return 0
	default:
		return t
	}
}

// handlePort53 finds out what a stream to port 53 is. The app is let in for that:
// a dead target looks like a reset, as with early data.
func (h *Handler) handlePort53(ctx context.Context, f flow.Flow, p flow.Pending) {
	if h.answersItself(f.Dst.Addr()) {
		h.opts.DNS.HandleStream(ctx, f, p)
		return
	}
	app, err := p.Accept()
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { abort(app) })
	first, isQuery := sniffDNS(app)
	stop()
	in := &letIn{conn: app, first: first}
	if isQuery {
		h.opts.DNS.HandleStream(ctx, f, in)
		return
	}
	h.handleStream(ctx, f, in)
}

// sniffDNS reads what the app says first, if it does within flow.SniffWithin, and
// reports whether it is a query for our resolver. A stream that begins with SOA
// is none: that is how a transfer begins, on the same connection.
func sniffDNS(app flow.StreamConn) (first []byte, isQuery bool) {
	_ = app.SetReadDeadline(time.Now().Add(flow.SniffWithin))
	defer app.SetReadDeadline(time.Time{})
	b := make([]byte, 2, 2+512)
	n, err := io.ReadFull(app, b)
	if err != nil {
		return b[:n], false // the relay sees the end again
	}
	size := int(binary.BigEndian.Uint16(b)) // RFC 1035 section 4.2.2
	b = b[:min(2+size, cap(b))]
	if n, err = app.Read(b[2:]); err == nil && n < len(b)-2 && mayBeQuery(b[2:2+n]) {
		more, _ := io.ReadFull(app, b[2+n:]) // the relay sees the error again
		n += more
	}
	b = b[:2+n]
	t := queryType(b[2:])
	return b, t > 0 && t != typeSOA
}

// mayBeQuery reports whether m is a query as far as it goes.
func mayBeQuery(m []byte) bool {
	return len(m) < dnsHeadBytes || m[2]&0xf8 == 0 && m[3]&0x4f == 0 && m[4] == 0 && m[5] == 1
}

// letIn is a Pending of an app that has been let in and has said something.
type letIn struct {
	conn  flow.StreamConn
	first []byte
}

var (
	_ flow.Pending    = (*letIn)(nil)
	_ flow.StreamConn = (*heard)(nil)
	_ flow.Unwrapper  = (*heardTCP)(nil)
)

// Accept implements flow.Pending; it does not wait.
func (l *letIn) Accept() (flow.StreamConn, error) {
	if len(l.first) == 0 {
		return l.conn, nil
	}
	c := &heard{StreamConn: l.conn, first: l.first}
	if tcp, ok := l.conn.(*net.TCPConn); ok {
		return &heardTCP{heard: c, tcp: tcp}, nil
	}
	return c, nil
}

// Reject implements flow.Pending.
func (l *letIn) Reject(flow.Reason) { abort(l.conn) }

// heard is a connection of which something was read already.
type heard struct {
	flow.StreamConn
	first []byte
}

func (c *heard) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		return c.StreamConn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}

// SetLinger is that of the connection, so that it can be reset.
func (c *heard) SetLinger(sec int) error {
	if l, ok := c.StreamConn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return errors.ErrUnsupported
}

// heardTCP is heard over a kernel socket, which a relay takes out.
type heardTCP struct {
	*heard
	tcp *net.TCPConn
}

// Unwrap implements flow.Unwrapper.
func (c *heardTCP) Unwrap() ([]byte, *net.TCPConn) { return c.first, c.tcp }

// dnsOnly is an app's socket as DNS sees it: what is not for DNS goes to other
// on the way. Once there was such, the socket lives as long as extend says
// (which moves the deadline), not only as long as there are queries, and has a
// buffer that is long enough for any datagram.
type dnsOnly struct {
	net.PacketConn
	isQuery func(to netip.AddrPort, p []byte) bool
	other   func(p []byte, to net.Addr)
	extend  func() bool
	buf     []byte // nil until there was another; used by the one reader
}

func (c *dnsOnly) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		b := p
		if c.buf != nil {
			b = c.buf
		}
		n, to, err := c.PacketConn.ReadFrom(b)
		if c.buf != nil && errors.Is(err, os.ErrDeadlineExceeded) && c.extend() {
			continue
		}
		if err != nil || c.isQuery(flow.AddrPortOf(to), b[:n]) {
			return copy(p, b[:n]), to, err
		}
		if n < len(b) { // else it may have been cut
			c.other(b[:n], to)
		}
		if c.buf == nil {
			c.buf = make([]byte, datagramBytes)
		}
	}
}

var _ net.PacketConn = (*dnsOnly)(nil)
