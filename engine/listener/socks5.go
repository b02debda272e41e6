package listener

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// RFC 1928: commands (section 4), address types (section 5), replies (section 6).
const (
	socksVersion = 5

	cmdConnect   = 1
	cmdAssociate = 3

	atypIPv4 = 1
	atypName = 3
	atypIPv6 = 4

	replySucceeded       = 0
	replyFailure         = 1
	replyForbidden       = 2
	replyHostUnreachable = 4
	replyRefused         = 5
	replyTTLExpired      = 6 // what clients call "timed out"
	replyBadCommand      = 7
	replyBadAddress      = 8
)

var (
	errAddressType = errors.New("unknown address type")
	errNoMethod    = errors.New("the app insists on a password; the local proxy takes none")
)

// serveSOCKS5 carries one SOCKS5 connection (RFC 1928) until it ends.
func (s *server) serveSOCKS5(ctx context.Context, app *client) {
	command, to, err := readSOCKS5(app)
	if err != nil {
		s.opts.Log.Debug("socks5 handshake failed", "app", app.RemoteAddr(), "err", err)
		switch {
		case errors.Is(err, errNoMethod):
			app.refuse([]byte{socksVersion, 0xff})
		case errors.Is(err, errAddressType):
			app.refuse(socksReply(replyBadAddress, netip.AddrPort{}))
		default:
			app.Close()
		}
		return
	}
	switch command {
	case cmdConnect:
		t, err := newTarget(to.host, to.port)
		if err != nil {
			s.opts.Log.Debug("socks5 request refused", "app", app.RemoteAddr(), "err", err)
			app.refuse(socksReply(replyFailure, netip.AddrPort{}))
			return
		}
		app.said()
		p := &socksPending{app: app}
		s.opts.Handler.HandleStream(ctx, newFlow(flow.TCP, flow.SOCKS5, app.addr(), app.door(), t), p)
		p.Reject(flow.Unreachable) // no effect, unless the Handler forgot
	case cmdAssociate:
		if s.opts.CarriesUDP != nil && !s.opts.CarriesUDP(ctx) {
			app.refuse(socksReply(replyBadCommand, netip.AddrPort{}))
			return
		}
		s.serveAssociation(ctx, app, to)
	default: // BIND, or nothing we know
		app.refuse(socksReply(replyBadCommand, netip.AddrPort{}))
	}
}

// socksAddr is an address as SOCKS5 writes it.
type socksAddr struct {
	host string // an address or a name, as the app wrote it
	port uint16
}

// readSOCKS5 negotiates the method (section 3) and reads the request (section 4).
func readSOCKS5(app io.ReadWriter) (command byte, to socksAddr, err error) {
	var buf [2 + 255]byte
	if _, err := io.ReadFull(app, buf[:2]); err != nil {
		return 0, to, fmt.Errorf("read methods: %w", err)
	}
	if buf[0] != socksVersion {
		return 0, to, fmt.Errorf("version %d", buf[0])
	}
	methods := buf[2 : 2+int(buf[1])]
	if _, err := io.ReadFull(app, methods); err != nil {
		return 0, to, fmt.Errorf("read methods: %w", err)
	}
	open := false
	for _, m := range methods {
		open = open || m == 0 // no authentication required
	}
	if !open {
		return 0, to, errNoMethod
	}
	if _, err := app.Write([]byte{socksVersion, 0}); err != nil {
		return 0, to, fmt.Errorf("answer methods: %w", err)
	}
	if _, err := io.ReadFull(app, buf[:3]); err != nil {
		return 0, to, fmt.Errorf("read request: %w", err)
	}
	if buf[0] != socksVersion {
		return 0, to, fmt.Errorf("request of version %d", buf[0])
	}
	command = buf[1]
	to, err = readSOCKSAddr(app)
	return command, to, err
}

// readSOCKSAddr reads ATYP, DST.ADDR and DST.PORT (section 5).
func readSOCKSAddr(r io.Reader) (socksAddr, error) {
	var buf [257]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return socksAddr{}, fmt.Errorf("read address type: %w", err)
	}
	n := 0
	switch atyp := buf[0]; atyp {
	case atypIPv4:
		n = 4
	case atypIPv6:
		n = 16
	case atypName:
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return socksAddr{}, fmt.Errorf("read name: %w", err)
		}
		n = int(buf[0])
		if _, err := io.ReadFull(r, buf[:n+2]); err != nil {
			return socksAddr{}, fmt.Errorf("read name: %w", err)
		}
		return socksAddr{host: string(buf[:n]), port: binary.BigEndian.Uint16(buf[n:])}, nil
	default:
		return socksAddr{}, fmt.Errorf("%w %d", errAddressType, atyp)
	}
	if _, err := io.ReadFull(r, buf[:n+2]); err != nil {
		return socksAddr{}, fmt.Errorf("read address: %w", err)
	}
	ip, _ := netip.AddrFromSlice(buf[:n])
	return socksAddr{host: ip.Unmap().String(), port: binary.BigEndian.Uint16(buf[n:])}, nil
}

// appendSOCKSAddr writes a as readSOCKSAddr reads it.
func appendSOCKSAddr(p []byte, a net.Addr) []byte {
	if named, ok := a.(flow.NameAddr); ok && len(named.Name) < 256 {
		p = append(p, atypName, byte(len(named.Name)))
		return binary.BigEndian.AppendUint16(append(p, named.Name...), named.Port)
	}
	ap := flow.AddrPortOf(a)
	ip := ap.Addr()
	switch {
	case ip.Is6():
		p = append(append(p, atypIPv6), ip.AsSlice()...)
	case ip.Is4():
		p = append(append(p, atypIPv4), ip.AsSlice()...)
	default:
		p = append(p, atypIPv4, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint16(p, ap.Port())
}

// socksReply is a reply (section 6); bound is BND.ADDR and BND.PORT.
func socksReply(code byte, bound netip.AddrPort) []byte {
	return appendSOCKSAddr([]byte{socksVersion, code, 0}, flow.UDPAddrOf(bound))
}

// replyOf is the reply that tells an app of reason.
func replyOf(reason flow.Reason) byte {
	switch reason {
	case flow.Refused:
		return replyRefused
	case flow.Unreachable:
		return replyHostUnreachable
	case flow.TimedOut:
		return replyTTLExpired
	case flow.Forbidden:
		return replyForbidden
	}
	return replyFailure
}

// socksPending is a CONNECT request that has not been answered yet.
type socksPending struct {
	app     *client
	decided atomic.Bool
}

var (
	_ flow.Pending = (*socksPending)(nil)
	_ flow.Spoken  = (*socksPending)(nil)
)

// Spoken implements flow.Spoken.
func (p *socksPending) Spoken() []byte { return p.app.spoken() }

// Accept implements flow.Pending.
func (p *socksPending) Accept() (flow.StreamConn, error) {
	if p.decided.Swap(true) {
		return nil, fmt.Errorf("accept socks5: %w", net.ErrClosed)
	}
	p.app.SetWriteDeadline(time.Now().Add(flow.SayWithin))
	if _, err := p.app.Write(socksReply(replySucceeded, netip.AddrPort{})); err != nil {
		p.app.Close()
		return nil, fmt.Errorf("answer socks5 request: %w", err)
	}
	return p.app.stream(), nil
}

// Reject implements flow.Pending.
func (p *socksPending) Reject(reason flow.Reason) {
	if !p.decided.Swap(true) {
		p.app.refuse(socksReply(replyOf(reason), netip.AddrPort{}))
	}
}
