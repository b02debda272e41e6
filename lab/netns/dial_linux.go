package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Listen listens in the namespace; address is an IP literal with a port.
func (n *NS) Listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	err := n.Do(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // plain TCP: splice(2) works on it
		ln, err = lc.Listen(context.Background(), network, address)
		return err
	})
	return ln, err
}

// ListenPacket opens a UDP socket in the namespace.
func (n *NS) ListenPacket(network, address string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := n.Do(func() (err error) {
		pc, err = net.ListenPacket(network, address)
		return err
	})
	return pc, err
}

// DialContext connects from the namespace to an IP literal with a port.
func (n *NS) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialFrom(ctx, netip.Addr{}, network, address)
}

// DialFrom is DialContext with a chosen source address (the zero Addr lets the
// kernel choose). Only socket(2) runs in the namespace, so a thousand slow
// connects hold no threads.
func (n *NS) DialFrom(ctx context.Context, from netip.Addr, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial in namespace %s: %w", n.name, err)
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	kind := unix.SOCK_STREAM
	if len(network) >= 3 && network[:3] == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := n.socket(to.Addr(), kind)
	if err != nil {
		return nil, err
	}
	if from.IsValid() && from.Is4() == to.Addr().Is4() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("bind %s: %w", from, err)
		}
	}
	f := os.NewFile(uintptr(fd), address)
	defer f.Close()
	if err := connect(ctx, f, to); err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return net.FileConn(f)
}

func (n *NS) socket(to netip.Addr, kind int) (fd int, err error) {
	family := unix.AF_INET6
	if to.Is4() {
		family = unix.AF_INET
	}
	err = n.Do(func() error {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err == nil {
		// An address that is bound before connect costs no port of its own.
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
	return fd, err
}

// connect waits on the runtime's poller, and is cut short by ctx.
func connect(ctx context.Context, f *os.File, to netip.AddrPort) error {
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		switch result = unix.Connect(int(fd), sockaddr(to)); {
		case errors.Is(result, unix.EINPROGRESS), errors.Is(result, unix.EALREADY), errors.Is(result, unix.EINTR):
			return false
		case errors.Is(result, unix.EISCONN):
			result = nil
		}
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if result != nil {
		return os.NewSyscallError("connect", result)
	}
	return nil
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}
