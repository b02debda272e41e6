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
	// probeAgain is for the second try, which a busy machine may need: its SYN is
	// repeated after a second (RFC 6298).
	probeAgain = 1500 * time.Millisecond
)

// ErrNotLetIn is a kernel path whose packets this machine's own firewall does
// not let in: measured, since the probe's SYN came to us by the TUN and what we
// wrote back did not reach our listener.
var ErrNotLetIn = errors.New("what comes in by the tun device is not let in")

// Probe opens a connection of its own through the kernel path, to an address
// that only this stack answers, and reports whether that works. It does not
// where a firewall on this machine drops what comes in by the TUN (ErrNotLetIn):
// translated connections do come in by it. Run must be running. On the userspace
// path there is nothing to probe.
func (s *Stack) Probe(ctx context.Context) error {
	k, ok := s.carrier.(*kernel)
	if !ok {
		return nil
	}
	err := k.probe(ctx, probeWithin, func(net.Conn) error { return nil })
	if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
		err = k.probe(ctx, probeAgain, func(net.Conn) error { return nil })
	}
	return err
}

// probe opens a connection to the canary of each family and checks it.
func (k *kernel) probe(ctx context.Context, within time.Duration, check func(net.Conn) error) error {
	for _, f := range k.families() {
		before := k.probes.Load()
		d := net.Dialer{Timeout: within, LocalAddr: &net.TCPAddr{IP: f.tun.netip().AsSlice()}}
		c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(f.canary(), probePort).String())
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue // the device has no address of this family: the machine's owner has switched it off
		}
		if err != nil && k.probes.Load() != before {
			return fmt.Errorf("%w: %w", ErrNotLetIn, err)
		}
		if err != nil {
			return fmt.Errorf("a connection through the kernel path: %w", err)
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
	a.k.probes.Add(1)
	if c, err := a.Accept(); err == nil {
		c.Close()
	}
}
