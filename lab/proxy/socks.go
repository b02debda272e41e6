package proxy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// SOCKS5 replies, RFC 1928 section 6.
const (
	replyOK          = 0
	replyFailure     = 1
	replyUnreachable = 4
	replyRefused     = 5
	replyCommand     = 7
	replyAddress     = 8
)

func (p *Proxy) serveSOCKS(c *net.TCPConn) error {
	if p.is(HTML) {
		_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"+page)
		return err
	}
	if err := p.negotiate(c); err != nil {
		return err
	}
	p.Counters.Handshakes.Add(1)
	var r io.Reader = c
	if p.opt.DropEarly {
		r = bufio.NewReader(c) // what it holds beyond the request is lost
	}
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			return nil // negotiated ahead, never used
		}
		return err
	}
	host, port, err := readAddr(r)
	if err != nil {
		reply(c, replyAddress, netip.AddrPort{})
		return err
	}
	p.Counters.Connects.Add(1)
	if d := p.Delay.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	switch {
	case p.is(Refuse):
		return reply(c, replyRefused, netip.AddrPort{})
	case head[1] == 1:
		return p.socksConnect(c, host, port)
	case head[1] == 3 && !p.opt.NoUDP:
		return p.associate(c)
	}
	return reply(c, replyCommand, netip.AddrPort{})
}

// negotiate is RFC 1928 section 3 and RFC 1929.
func (p *Proxy) negotiate(c net.Conn) error {
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(c, methods); err != nil || head[0] != 5 {
		return fmt.Errorf("not SOCKS5 (version %d): %v", head[0], err)
	}
	want := byte(0)
	if p.guarded() || p.is(Auth) {
		want = 2
	}
	for _, m := range methods {
		if m == want {
			return p.authenticate(c, want)
		}
	}
	c.Write([]byte{5, 0xff})
	return errors.New("no acceptable method")
}

func (p *Proxy) authenticate(c net.Conn, method byte) error {
	if _, err := c.Write([]byte{5, method}); err != nil || method == 0 {
		return err
	}
	var version [1]byte
	if _, err := io.ReadFull(c, version[:]); err != nil {
		return err
	}
	user, err := readString(c)
	if err != nil {
		return err
	}
	password, err := readString(c)
	if err != nil {
		return err
	}
	if p.is(Auth) || !p.admits(user, password) {
		c.Write([]byte{1, 1})
		return errors.New("wrong user or password")
	}
	_, err = c.Write([]byte{1, 0})
	return err
}

func (p *Proxy) socksConnect(c *net.TCPConn, host string, port uint16) error {
	target, err := p.dial(host, port)
	if err != nil {
		code := byte(replyFailure)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			code = replyRefused
		case errors.Is(err, errNoName), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
			code = replyUnreachable
		}
		return errors.Join(err, reply(c, code, netip.AddrPort{}))
	}
	if !p.track(target) {
		return nil
	}
	defer p.untrack(target)
	if err := reply(c, replyOK, target.LocalAddr().(*net.TCPAddr).AddrPort()); err != nil {
		return err
	}
	p.Counters.Served.Add(1)
	return relay(c, nil, target)
}

// associate relays datagrams while c stays open (RFC 1928 section 7).
func (p *Proxy) associate(c *net.TCPConn) error {
	local := p.Addr().Addr()
	app, err := p.opt.Network.ListenPacket("udp", netip.AddrPortFrom(local, 0).String())
	if err != nil {
		return errors.Join(err, reply(c, replyFailure, netip.AddrPort{}))
	}
	a := &association{p: p, app: app.(*net.UDPConn), client: c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}
	defer a.close()
	for i, from := range []netip.Addr{p.opt.From4, p.opt.From6} {
		if !from.IsValid() {
			from = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[i]
		}
		out, err := p.opt.Network.ListenPacket("udp", netip.AddrPortFrom(from, 0).String())
		if err != nil {
			continue // a machine without that family
		}
		a.out[i] = out.(*net.UDPConn)
	}
	if !p.track(a) {
		return nil
	}
	defer p.untrack(a)
	if err := reply(c, replyOK, netip.AddrPortFrom(local, app.LocalAddr().(*net.UDPAddr).AddrPort().Port())); err != nil {
		return err
	}
	p.Counters.Served.Add(1)
	p.Counters.UDP.Add(1)
	c.SetDeadline(time.Time{})
	a.run(c)
	return nil
}

// reply is RFC 1928 section 6.
func reply(c net.Conn, code byte, bound netip.AddrPort) error {
	if !bound.IsValid() {
		bound = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	_, err := c.Write(appendAddr([]byte{5, code, 0}, bound))
	return err
}

func appendAddr(b []byte, ap netip.AddrPort) []byte {
	a := ap.Addr().Unmap()
	if a.Is4() {
		b = append(b, 1)
	} else {
		b = append(b, 4)
	}
	b = append(b, a.AsSlice()...)
	return binary.BigEndian.AppendUint16(b, ap.Port())
}

// readAddr reads ATYP, address and port.
func readAddr(r io.Reader) (host string, port uint16, err error) {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		return "", 0, err
	}
	switch kind[0] {
	case 1, 4:
		b := make([]byte, map[byte]int{1: 4, 4: 16}[kind[0]])
		if _, err := io.ReadFull(r, b); err != nil {
			return "", 0, err
		}
		a, _ := netip.AddrFromSlice(b)
		host = a.String()
	case 3:
		if host, err = readString(r); err != nil {
			return "", 0, err
		}
	default:
		return "", 0, fmt.Errorf("address type %d", kind[0])
	}
	var b [2]byte
	_, err = io.ReadFull(r, b[:])
	return host, binary.BigEndian.Uint16(b[:]), err
}

// readString reads a length byte and that many bytes.
func readString(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, n[0])
	_, err := io.ReadFull(r, b)
	return string(b), err
}
