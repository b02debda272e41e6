package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	probePort   = 9 // discard (RFC 863)
	probeWithin = 300 * time.Millisecond
)

// Probe opens a connection of its own through the kernel path, to an address
// that only this stack answers, and reports whether that works. It does not
// where a firewall on this machine drops what comes in by the TUN: translated
// connections do come in by it. Run must be running. On the userspace path
// there is nothing to probe.
func (s *Stack) Probe(ctx context.Context) error {
	k, ok := s.carrier.(*kernel)
	if !ok {
		return nil
	}
	return k.probe(ctx, func(net.Conn) error { return nil })
}

// probe opens a connection to the canary of each family and checks it.
func (k *kernel) probe(ctx context.Context, check func(net.Conn) error) error {
	for _, f := range k.families() {
		d := net.Dialer{Timeout: probeWithin, LocalAddr: &net.TCPAddr{IP: f.tun.netip().AsSlice()}}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(f.canary(), probePort).String())
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue // the device has no address of this family: the machine's owner has switched it off
		}
		if err != nil {
			return fmt.Errorf("a connection through the kernel path (does a firewall drop what comes in by the tun device?): %w", err)
		}
		err = check(c)
		c.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// canary is the address that Probe asks for: the second after the device's own,
// which is neither a NAT peer nor ever given to a name.
func (f *family) canary() netip.Addr { return f.tun.netip().Next().Next() }

// isProbe reports whether a connection is one of Probe's.
func (f *family) isProbe(src, dst netip.AddrPort) bool {
	return dst.Port() == probePort && src.Addr() == f.tun.netip() && dst.Addr() == f.canary()
}

// answer accepts a connection of Probe's.
func (a *tcpAsked) answer() {
	if c, err := a.Accept(); err == nil {
		c.Close()
	}
}
