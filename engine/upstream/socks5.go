package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// The numbers of RFC 1928 and RFC 1929.
const (
	socksVersion     = 5
	socksAuthVersion = 1

	socksNoAuth       = 0x00
	socksUserPassword = 0x02
	socksNoneFits     = 0xff

	socksConnect   = 0x01
	socksAssociate = 0x03

	socksIPv4   = 0x01
	socksDomain = 0x03
	socksIPv6   = 0x04
)

const hintNotSOCKS = "this is not a SOCKS5 proxy's port: check scheme, host and port"

// socks5 dials through a SOCKS5 proxy. Names go to the proxy as names.
type socks5 struct {
	net   *netDialer
	spec  Spec
	stats *counters
	line  line
	batches
}

func newSOCKS5(nd *netDialer, s Spec, stats *counters) *socks5 {
	d := &socks5{net: nd, spec: s, stats: stats}
	d.line = line{
		pool:    newPool(nd.opts.PoolMax, stats, func(ctx context.Context) (*warm, error) { return d.dial(ctx, handshakeTimeout) }),
		what:    "SOCKS5 handshake",
		request: func(b []byte, a *ask) []byte { return appendSOCKSRequest(b, socksConnect, a.t) },
		reply:   socksReply,
	}
	return d
}

// dial connects, settles the method and authenticates. The proxy has limit for
// the latter two.
func (d *socks5) dial(ctx context.Context, limit time.Duration) (*warm, error) {
	var tr Trace
	c, err := d.net.dialProxy(WithTrace(ctx, &tr), d.spec, d.stats)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	release := until(ctx, c, limit)
	err = negotiate(c, d.spec)
	if whole := release(); err == nil && !whole {
		err = context.Cause(ctx)
	}
	if err != nil {
		abort(c)
		return nil, talkFault("SOCKS5 handshake", err)
	}
	return newWarm(c, c, &tr, time.Since(begin)), nil
}

func (d *socks5) open(ctx context.Context, a ask) (flow.StreamConn, error) {
	return d.line.tunnel(ctx, nil, a)
}

// check negotiates and authenticates, and asks for nothing; the pool gets the
// connection. Silence counts: a web server, say, waits for the rest of what it
// takes for a request.
func (d *socks5) check(ctx context.Context, _ *Spec) error {
	epoch := d.line.pool.now()
	w, err := d.dial(ctx, greetTimeout)
	if err != nil {
		return err
	}
	d.line.pool.prime()
	d.line.pool.add(w, epoch)
	return nil
}

// request makes another request than CONNECT; bound is the address in the
// reply.
func (d *socks5) request(ctx context.Context, command byte, t flow.Target) (c *net.TCPConn, bound flow.Target, err error) {
	l := &line{
		pool:    d.line.pool,
		what:    "SOCKS5 request",
		request: func(b []byte, a *ask) []byte { return appendSOCKSRequest(b, command, a.t) },
		reply:   socksReply,
	}
	k, err := l.talk(ctx, nil, ask{spec: &d.spec, t: t})
	if err != nil {
		return nil, bound, err
	}
	return k.w.tcp, k.in.bound, nil
}

func (d *socks5) ready(ctx context.Context) (time.Duration, error) {
	return d.line.ready(ctx, func(ctx context.Context) (*warm, error) { return d.dial(ctx, greetTimeout) })
}

func (d *socks5) flush(again bool) { d.line.pool.flush(again) }
func (d *socks5) close()           { d.line.pool.close() }

// negotiate settles the method and authenticates (RFC 1928 section 3, RFC 1929).
func negotiate(c io.ReadWriter, s Spec) error {
	hello := []byte{socksVersion, 1, socksNoAuth}
	withUser := s.Username != ""
	if withUser {
		hello = []byte{socksVersion, 2, socksNoAuth, socksUserPassword}
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	var b [2]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	switch {
	case b[0] == 'H' && b[1] == 'T':
		return fault(Protocol, errors.New("SOCKS5 handshake answered with HTTP"), "the proxy speaks HTTP: use http://")
	case b[0] != socksVersion:
		return fault(Protocol, fmt.Errorf("SOCKS5 handshake answered with version %d", b[0]), hintNotSOCKS)
	case b[1] == socksNoAuth:
		return nil
	case b[1] == socksUserPassword && withUser:
		return authenticate(c, s)
	case b[1] == socksNoneFits && withUser:
		return fault(Auth, errors.New("SOCKS5: the proxy takes neither our user and password nor none"), hintAuth)
	case b[1] == socksNoneFits:
		return fault(Auth, errors.New("SOCKS5: the proxy wants a user and password"), hintAuth)
	}
	return fault(Protocol, fmt.Errorf("SOCKS5: the proxy chose method %d, which was not offered", b[1]), hintNotSOCKS)
}

func authenticate(c io.ReadWriter, s Spec) error {
	user, pass := s.Username, s.Password.Reveal()
	b := make([]byte, 0, 3+len(user)+len(pass))
	b = append(b, socksAuthVersion, byte(len(user)))
	b = append(b, user...)
	b = append(b, byte(len(pass)))
	b = append(b, pass...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		if errors.Is(err, io.EOF) { // some close instead of answering
			return fault(Auth, errors.New("SOCKS5: the proxy closed the connection on our user and password"), hintAuth)
		}
		return err
	}
	// Some proxies repeat version 5 here; only the status counts.
	if answer[0] != socksAuthVersion && answer[0] != socksVersion {
		return fault(Protocol, fmt.Errorf("SOCKS5: authentication answered with version %d", answer[0]), hintNotSOCKS)
	}
	if answer[1] != 0 {
		return fault(Auth, fmt.Errorf("SOCKS5: the proxy does not accept our user and password (status %d)", answer[1]), hintAuth)
	}
	return nil
}

// appendSOCKSRequest adds a request (RFC 1928 section 4).
func appendSOCKSRequest(b []byte, command byte, t flow.Target) []byte {
	return appendSOCKSAddr(append(b, socksVersion, command, 0), t)
}

// appendSOCKSAddr adds ATYP, address and port; a name goes before an address.
func appendSOCKSAddr(b []byte, t flow.Target) []byte {
	switch {
	case t.Name != "":
		b = append(b, socksDomain, byte(len(t.Name)))
		b = append(b, t.Name...)
	case t.Addr.Unmap().Is4():
		a := t.Addr.Unmap().As4()
		b = append(append(b, socksIPv4), a[:]...)
	default:
		a := t.Addr.As16()
		b = append(append(b, socksIPv6), a[:]...)
	}
	return append(b, byte(t.Port>>8), byte(t.Port))
}

func socksReply(a *answer) (err error) {
	a.bound, err = peekSOCKSReply(a)
	return err
}

// maxSOCKSReplyBytes: VER, REP, RSV, ATYP, length, name, port.
const maxSOCKSReplyBytes = 4 + 1 + 255 + 2

// peekSOCKSReply is readSOCKSReply with two system calls where the reply comes
// in one piece.
func peekSOCKSReply(a source) (bound flow.Target, err error) {
	if !a.canPeek() {
		return readSOCKSReply(a)
	}
	var b [maxSOCKSReplyBytes]byte
	n, err := a.peek(b[:])
	if err != nil {
		return bound, err
	}
	whole := bytes.NewReader(b[:n])
	bound, err = readSOCKSReply(whole)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return readSOCKSReply(a)
	}
	if err == nil {
		_, err = io.ReadFull(a, b[:n-whole.Len()])
	}
	return bound, err
}

// readSOCKSReply reads one reply to the byte (RFC 1928 section 6).
func readSOCKSReply(r io.Reader) (bound flow.Target, err error) {
	var head [4]byte
	// A proxy that says no may send less than a whole reply.
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return bound, err
	}
	if head[0] != socksVersion {
		return bound, fault(Protocol, fmt.Errorf("SOCKS5 request answered with version %d", head[0]), hintNotSOCKS)
	}
	if head[1] != 0 {
		return bound, socksRefusal(head[1])
	}
	if _, err := io.ReadFull(r, head[2:]); err != nil {
		return bound, err
	}
	var b [256 + 2]byte
	n := 0
	switch head[3] {
	case socksIPv4:
		n = 4
	case socksIPv6:
		n = 16
	case socksDomain:
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return bound, err
		}
		n = int(b[0])
	default:
		return bound, fault(Protocol, fmt.Errorf("SOCKS5 reply with address type %d", head[3]), "")
	}
	if _, err := io.ReadFull(r, b[:n+2]); err != nil {
		return bound, err
	}
	if head[3] == socksDomain {
		bound.Name = string(b[:n])
	} else {
		a, _ := netip.AddrFromSlice(b[:n])
		bound.Addr = a.Unmap()
	}
	bound.Port = uint16(b[n])<<8 | uint16(b[n+1])
	return bound, nil
}

// socksRefusal maps the reply codes of RFC 1928 section 6.
func socksRefusal(code byte) error {
	text, r := "unknown", flow.Unreachable
	switch code {
	case 1:
		text = "general failure"
	case 2:
		text, r = "not allowed by the proxy's rules", flow.Forbidden
	case 3:
		text = "network unreachable"
	case 4:
		text = "host unreachable"
	case 5:
		text, r = "connection refused", flow.Refused
	case 6:
		text, r = "TTL expired", flow.TimedOut
	case 7:
		text, r = "command not supported", flow.Forbidden
	case 8:
		text = "address type not supported"
	default:
		return fault(Protocol, fmt.Errorf("SOCKS5 reply code %d", code), "")
	}
	e := targetFault(r, fmt.Errorf("SOCKS5 reply %d: %s", code, text))
	e.Status = int(code)
	return e
}
