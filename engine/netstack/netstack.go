// Package netstack turns the packets in a TUN device into flows.
//
//	            ┌ kernel path: TCP is translated towards a listener of ours, so that
//	apps ─ TUN ─┤   this machine's own kernel terminates it; UDP and ICMP by hand
//	            └ userspace path: gVisor terminates TCP, UDP and ICMP
//	                 │
//	                 └─► flow.Handler (engine/route)
//
// The kernel path needs a device with raw queues (platform.MultiQueue, which is
// why this package imports platform beside flow; the types are named, so a
// structural interface cannot stand in). It rewrites addresses and ports of
// packets of up to 64 KiB and hands them back to the kernel:
//
//	app A:sp ──► X:dp          is written back as   peer:np ──► tun:port (listener)
//	tun:port ──► peer:np       is written back as   X:dp ──► A:sp
//
// Both legs of a relayed connection are then kernel sockets, and copying
// between them is splice(2). A new connection's SYN is held until the Handler
// has accepted or rejected the flow, so that a dead target looks dead. Where the
// system redirects connections past the TUN (redirect.go) it is not: those are
// established when they come.
//
// A queue's Read should park its goroutine (os.NewFile over a non-blocking
// descriptor) rather than its thread: the thread that has written a packet then
// also runs whom that packet woke. With blocking reads a keep-alive request cost
// 2.5 futex calls instead of 0.4 (strace -c, 2 cores, 2026-11-22).
//
// UDP does not go through gVisor on the kernel path: a session here is one map
// entry, one small queue and one goroutine, where a gVisor endpoint costs
// several times that. Datagrams are read in bursts (burst.go), and where the
// Handler knows their way they leave on the goroutine that has read them; the
// queue and the other goroutine are for those that need a verdict or a dial.
//
// Everything in a packet is hostile input: tables are bounded, nothing is
// answered with more than it cost to send, and no answer begets an answer.
//
// Only engine imports this package; only this package imports gvisor.dev.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Options are what a Stack is made from.
type Options struct {
	// Device is the TUN. The Stack owns it from a successful New on, and closes
	// it: a blocked read of a TUN ends in no other way.
	Device tun.Device
	// Stack chooses the path: "kernel" (an error where the device has no raw
	// queues), "userspace", or "auto" (also ""): kernel where possible.
	Stack string
	// Addr4 and Addr6 are the device's own addresses with their on-link prefix,
	// at most /24 and /116 long: the kernel path uses addresses next to it as
	// NAT peers (.16 to .255; ::100 to ::fff). An invalid prefix leaves that
	// family out, and its packets are dropped.
	Addr4, Addr6 netip.Prefix
	MTU          int // bytes of IP packet; larger datagrams to apps are fragmented
	Handler      flow.Handler
	Log          *slog.Logger
}

// carrier is one of the two paths.
type carrier interface {
	Run(ctx context.Context) error
	Close() error
}

// Stack carries the packets of one TUN device.
type Stack struct {
	carrier carrier
	path    string
}

// New makes a Stack; it reads no packet before Run. On an error the device
// stays with the caller.
func New(o Options) (*Stack, error) {
	if o.Device == nil || o.Handler == nil || o.Log == nil {
		return nil, errors.New("netstack: Device, Handler and Log must be set")
	}
	if !o.Addr4.IsValid() && !o.Addr6.IsValid() {
		return nil, errors.New("netstack: neither Addr4 nor Addr6 is set")
	}
	mq, raw := o.Device.(platform.MultiQueue)
	raw = raw && len(mq.Queues()) > 0
	switch o.Stack {
	case "kernel":
		if !raw {
			return nil, fmt.Errorf("tun stack %q: this device has no raw queues; use \"auto\" or \"userspace\"", o.Stack)
		}
	case "userspace":
		raw = false
	case "auto", "":
	default:
		return nil, fmt.Errorf("tun stack %q: want \"auto\", \"kernel\" or \"userspace\"", o.Stack)
	}
	if raw {
		k, err := newKernel(o, mq.Queues())
		if err != nil {
			return nil, fmt.Errorf("kernel path: %w", err)
		}
		return &Stack{carrier: k, path: "kernel"}, nil
	}
	u, err := newUserspace(o)
	if err != nil {
		return nil, fmt.Errorf("userspace path: %w", err)
	}
	return &Stack{carrier: u, path: "userspace"}, nil
}

// Stats count what was not carried since the start. All but WriteErrors are
// expected under hostile input or overload.
type Stats struct {
	Malformed   uint64 // packets that are not what their headers say
	Ignored     uint64 // multicast, ICMP errors, other protocols: dropped in silence
	Refused     uint64 // RST or port unreachable sent
	Full        uint64 // of these, because a table was full
	UDPDropped  uint64 // datagrams lost to a full queue or table
	UDPEvicted  uint64 // sessions that made room for others
	WriteErrors uint64 // packets that the device did not take, but for datagrams, which the Handler counts
}

// Stats reports the counters of the kernel path; the userspace path has none.
func (s *Stack) Stats() Stats {
	if k, ok := s.carrier.(*kernel); ok {
		return k.counters.stats()
	}
	return Stats{}
}

// Path is "kernel" or "userspace".
func (s *Stack) Path() string { return s.path }

// Run carries packets until ctx ends (it then returns nil) or the device fails.
// It returns after every flow has ended, closes the device, and is called once.
func (s *Stack) Run(ctx context.Context) error { return s.carrier.Run(ctx) }

// Close releases the device and ends Run. It is idempotent and may be called
// without Run.
func (s *Stack) Close() error { return s.carrier.Close() }
