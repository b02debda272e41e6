// Package platform is the contract between the engine and an operating system.
//
//	engine ──► platform.Host ◄── platform/linux | darwin | windows
//	                         ◄── platform/platformtest (a recording fake)
//
// The engine hands the system a whole desired state (NetConfig) and the Host
// brings the machine there; nothing outside platform/* knows how. The package
// holds types only. app/atlanticd picks the Host.
package platform

import (
	"context"
	"errors"
	"net/netip"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
)

// Host is one operating system's network. All methods may be called from any
// goroutine.
type Host interface {
	// OpenTUN creates the TUN device and returns it. The device disappears
	// when it is closed or when the process ends. The returned device may also
	// satisfy MultiQueue. A NetConfig.Redirect in force ends: the listener that
	// it led to was an earlier device's.
	OpenTUN(TUNConfig) (tun.Device, error)

	// Apply makes the machine match cfg. It is idempotent, and all-or-nothing:
	// on an error the machine is as it was before the call. Every change is
	// journalled before it is made. The zero NetConfig undoes everything that
	// this Host (or a crashed one before it) has changed, object by object; it
	// reads back, and what is left all the same is an error.
	Apply(ctx context.Context, cfg NetConfig) error

	// Changes delivers a value after the physical network has changed: links,
	// addresses, default routes. Bursts are merged (within about 200 ms). The
	// channel is closed by Close.
	Changes() <-chan NetChange

	// Control prepares one of our own sockets before it connects or binds, so
	// that its packets leave by the physical network and never enter the TUN.
	// It has the shape of net.Dialer.Control.
	Control(network, address string, c syscall.RawConn) error

	// Close restores the machine (as Apply of the zero NetConfig does) and
	// releases the Host. It is idempotent.
	Close() error
}

// TUNConfig says what TUN device to create.
type TUNConfig struct {
	Name   string // "atlantic0"; macOS picks utunN instead
	MTU    int    // bytes of IP packet
	Queues int    // wanted number of queues; 0 or 1 where more are not possible
	// Addr4 and Addr6 are the device's own addresses with their prefix, which
	// is on-link. An invalid prefix leaves that family out.
	Addr4, Addr6 netip.Prefix
}

// MultiQueue is what a TUN device has beside tun.Device where the system hands
// out raw super-packets (Linux). A user of it does not call tun.Device's Read
// and Write.
type MultiQueue interface {
	// Queues returns one file per queue, each a descriptor of
	// /dev/net/tun with IFF_VNET_HDR: every read returns one virtio_net_hdr
	// (10 bytes) and one packet of up to 64 KiB; every write takes the same.
	// They stay owned by the device and are closed with it; a blocked read
	// returns an error then.
	Queues() []Queue
}

// Queue reads and writes raw packets with a virtio_net_hdr in front.
type Queue interface {
	Read(p []byte) (int, error)
	Write(p []byte) (int, error)
}

// NetConfig is the whole desired state of the machine's network. The zero
// value means "as if we had never been here".
type NetConfig struct {
	// TUN is the name of the device (from tun.Device.Name) that traffic is to
	// enter; "" means none, and then nothing else is applied.
	TUN string
	// Addr4 and Addr6 are the TUN's own addresses, as in TUNConfig.
	Addr4, Addr6 netip.Prefix
	MTU          int
	// Default4 and Default6 take the default route of that family into the
	// TUN. A family with an address but no Default is left alone.
	Default4, Default6 bool
	// LAN keeps the private subnets that this machine is attached to (tracked
	// live) and link-local multicast outside the TUN; port 53 enters the TUN
	// even there.
	LAN bool
	// DNS are the resolver addresses that apps are to use; empty leaves DNS
	// alone.
	DNS []netip.Addr
	// LinkDNS, if not 0, is the port on which somebody listens, at all IPv6
	// addresses, for queries to link-local resolvers: no route can take those into
	// the TUN. A Host that can takes them there, and lets nobody else reach it.
	LinkDNS uint16
	// Redirect, if not 0, takes TCP connections of this machine that would enter
	// the TUN to this port of loopback instead (any address of 127.0.0.0/8, or
	// ::1): all of IPv4, and IPv6 towards Addr6's prefix, but not those to a port
	// in RedirectExcept. A connection
	// keeps the way that its SYN took while Redirect changes. A Host that cannot
	// do it ignores it: whoever asks has to try whether it works.
	Redirect       uint16
	RedirectExcept []uint16
}

// NetChange tells what the physical network looks like now.
type NetChange struct {
	Up bool // there is a default route outside the TUN
	// Interface is the device of that route; "" if there is none.
	Interface  string
	Has4, Has6 bool
	// DNS are the resolvers that the machine had (and would have without us).
	DNS []netip.Addr
	// Search are the domains that this network calls its own (resolv.conf(5),
	// and what a resolver service has per link): those resolvers know the names
	// below them, and others need not. They come from whoever runs the network.
	Search []string
	// Self are the addresses of this machine, but for loopback's and the TUN's.
	Self []netip.Addr
	// LAN are the private subnets that this machine is attached to (RFC 1918,
	// RFC 4193, link-local; on-link, never a public range, never all of 10/8).
	LAN []netip.Prefix
	// Others are the networks that this machine reaches by an interface of their
	// own, beside the one to the Internet. Their traffic never enters the TUN.
	Others []Network
}

// Network is one of the others: a tunnel of another program, the bridge of
// containers, a second LAN.
type Network struct {
	Interface string
	Prefixes  []netip.Prefix
}

// Options are what every Host is made from: New(*slog.Logger, Options).
type Options struct {
	// StateDir holds the journal; it must be writable by root only.
	StateDir string
}

// Uplink is what a Host may know beside the contract: the physical network as
// it is now, for a start before any change has been delivered. Every Host in
// this repository has it.
type Uplink interface {
	Uplink() NetChange
}

// Processes finds the app at the local end of a flow. A Host may have it.
type Processes interface {
	// Process returns the executable's path of the process that owns the local
	// socket src (protocol "tcp" or "udp"), or "" if it cannot be told. It may
	// take a millisecond: never call it per packet.
	Process(network string, src, dst netip.AddrPort) string
}

// Owners tells whose sockets are. A Host may have it.
type Owners interface {
	// Owner returns the user of the socket of this machine (protocol "tcp" or
	// "udp") that a packet from remote to local would reach: one that is
	// connected so, or else listens there. ok is false if there is none, if it
	// belongs to no process any more, or if it cannot be told. It takes
	// microseconds.
	Owner(network string, local, remote netip.AddrPort) (uid uint32, ok bool)
}

// LinkDNSTaker is a Host that heeds NetConfig.LinkDNS, where it says so.
type LinkDNSTaker interface{ TakesLinkDNS() bool }

// Warner tells what works less well than it could on this machine, in sentences
// for people, as of the last Apply. A Host may be one.
type Warner interface {
	Warnings() []string
}

// Captor tells whether what Apply made has taken effect. A Host may be one.
type Captor interface {
	// Captures asks the system itself. It returns nil if an app's packet to the
	// internet would enter the TUN, or go nowhere, in every address family, and
	// else which would not. It takes less than a millisecond and waits for no Apply.
	Captures() error
}

// Errors that callers branch on; they are wrapped with what was being done.
var (
	ErrPermission  = errors.New("permission denied")            // not root, or a capability is missing
	ErrNoTUN       = errors.New("the system has no TUN device") // /dev/net/tun missing, wintun.dll missing
	ErrUnsupported = errors.New("not supported on this system")
	ErrRunning     = errors.New("another instance is running") // it holds the lock in StateDir
)
