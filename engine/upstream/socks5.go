package upstream

import (
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
}

func (d *socks5) DialStream(ctx context.Context, t flow.Target, early []byte) (flow.StreamConn, error) {
	c, _, err := d.request(ctx, socksConnect, t)
	if err != nil {
		return nil, err
	}
	if err := writeEarly(ctx, c, early); err != nil {
		return nil, err
	}
	return c, nil
}

// request connects, authenticates and makes one request; bound is the address
// in the reply.
func (d *socks5) request(ctx context.Context, command byte, t flow.Target) (c *net.TCPConn, bound flow.Target, err error) {
	c, err = d.net.dialProxy(ctx, d.spec, d.stats)
	if err != nil {
		return nil, bound, err
	}
	begin := time.Now()
	release := until(ctx, c, handshakeTimeout)
	err = negotiate(c, d.spec)
	if err == nil {
		bound, err = exchange(c, command, t)
	}
	traceOf(ctx).Connect = time.Since(begin)
	if whole := release(); err == nil && !whole {
		err = context.Cause(ctx)
	}
	if err != nil {
		abort(c)
		return nil, bound, talkFault("SOCKS5 handshake", err)
	}
	return c, bound, nil
}

// check negotiates and authenticates, and asks for nothing. Silence counts: a
// web server, say, waits for the rest of what it takes for a request.
func (d *socks5) check(ctx context.Context) error {
	c, err := d.net.dialProxy(ctx, d.spec, d.stats)
	if err != nil {
		return err
	}
	defer c.Close()
	release := until(ctx, c, greetTimeout)
	err = negotiate(c, d.spec)
	release()
	if err != nil {
		return talkFault("SOCKS5 handshake", err)
	}
	return nil
}

func (d *socks5) close() {}

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

// exchange sends one request and reads its reply to the byte (RFC 1928
// sections 4 and 6).
func exchange(c io.ReadWriter, command byte, t flow.Target) (bound flow.Target, err error) {
	b := make([]byte, 0, 4+1+maxHostBytes+2)
	b = append(b, socksVersion, command, 0)
	if _, err := c.Write(appendSOCKSAddr(b, t)); err != nil {
		return bound, err
	}
	return readSOCKSReply(c)
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
	return targetFault(r, fmt.Errorf("SOCKS5 reply %d: %s", code, text))
}
