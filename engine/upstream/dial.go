package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// How long each step may take. A flow's whole set-up ends within
// setupTimeout.
const (
	dialTimeout      = flow.DialWithin
	tlsTimeout       = flow.TLSWithin
	handshakeTimeout = flow.HandshakeWithin
	setupTimeout     = flow.SetupWithin
	resolveTimeout   = flow.ResolveWithin
	attemptDelay     = flow.NextAddressAfter
	maxAddrs         = 8 // tried of one name
)

// netDialer opens the sockets of all dialers, through Options.Control.
type netDialer struct {
	opts    Options
	records sync.Pool // *[]byte, see wire
}

// resolve turns a host name or literal into addresses.
func (d *netDialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	lookup := d.opts.Resolve
	if lookup == nil {
		lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	addrs, err := lookup(ctx, host)
	if err != nil {
		var de *net.DNSError
		if errors.As(err, &de) {
			return nil, err
		}
		return nil, fmt.Errorf("resolve %q: %w", host, err)
	}
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	return interleave(addrs), nil
}

// interleave orders addresses by alternating families, IPv6 first (RFC 8305
// section 4), without duplicates, at most maxAddrs.
func interleave(addrs []netip.Addr) []netip.Addr {
	var six, four []netip.Addr
	seen := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || seen[a] {
			continue
		}
		seen[a] = true
		if a.Is4() {
			four = append(four, a)
		} else {
			six = append(six, a)
		}
	}
	var out []netip.Addr
	for i := 0; (i < len(six) || i < len(four)) && len(out) < maxAddrs; i++ {
		if i < len(six) {
			out = append(out, six[i])
		}
		if i < len(four) {
			out = append(out, four[i])
		}
	}
	return out
}

type attempt struct {
	c   *net.TCPConn
	err error
}

// dialAddrs connects to the first address that answers (RFC 8305): the next
// is tried attemptDelay after the last one or as soon as that failed, and
// losers are closed. The error is that of the first attempt that was refused,
// else of the first.
func (d *netDialer) dialAddrs(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	if len(addrs) == 0 {
		return nil, errors.New("no address to connect to")
	}
	if len(addrs) == 1 {
		return d.dialOne(ctx, netip.AddrPortFrom(addrs[0], port))
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan attempt)
	running, next := 0, 0
	defer func() {
		cancel()
		for ; running > 0; running-- { // each ends at once now
			if r := <-results; r.c != nil {
				r.c.Close()
			}
		}
	}()
	start := func() {
		ap := netip.AddrPortFrom(addrs[next], port)
		next++
		running++
		go func() {
			c, err := d.dialOne(ctx, ap)
			results <- attempt{c, err}
		}()
	}
	start()
	timer := time.NewTimer(attemptDelay)
	defer timer.Stop()
	var errs []error
	for running > 0 {
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.c, nil
			}
			errs = append(errs, r.err)
		case <-timer.C:
		}
		if next < len(addrs) && ctx.Err() == nil {
			start()
			timer.Reset(attemptDelay)
		}
	}
	return nil, worst(errs)
}

// worst picks the error that tells most: an answer says more than silence.
func worst(errs []error) error {
	for _, err := range errs {
		if dialFault(err).Kind == Refused {
			return err
		}
	}
	return errs[0]
}

// control is net.Dialer.Control.
func (d *netDialer) control(network, address string, c syscall.RawConn) error {
	if err := flow.UrgentInline(network, address, c); err != nil || d.opts.Control == nil {
		return err
	}
	return d.opts.Control(network, address, c)
}

func (d *netDialer) dialOne(ctx context.Context, ap netip.AddrPort) (*net.TCPConn, error) {
	nd := net.Dialer{Timeout: dialTimeout, Control: d.control, KeepAliveConfig: net.KeepAliveConfig{Enable: true,
		Idle: flow.FarKeepAliveIdle, Interval: flow.FarKeepAliveInterval, Count: flow.FarKeepAliveCount}}
	nd.SetMultipathTCP(false) // a plain TCP socket is what splice(2) takes
	c, err := nd.DialTCP(ctx, "tcp", netip.AddrPort{}, ap)
	var op *net.OpError
	if errors.As(err, &op) {
		op.Source = nil // "dial tcp :0->192.0.2.1:80" tells nobody anything
	}
	return c, err
}
