package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const maxRoutes = 4096 // destinations whose interface is remembered

// Control implements platform.Host. The socket gets our mark, which leads past
// the TUN, and, where its destination lies beyond a gateway, is bound to that
// interface, so that it stays outside even if somebody deletes our rules. A
// socket without a destination (a listener, an unconnected UDP socket) is only
// marked. Without CAP_NET_ADMIN it does nothing.
func (h *Host) Control(network, address string, c syscall.RawConn) error {
	if !h.privileged {
		return nil
	}
	dst, err := netip.ParseAddrPort(address)
	if err == nil && dst.Addr().Unmap().IsLoopback() {
		return nil
	}
	device := ""
	if err == nil && !dst.Addr().IsUnspecified() && dst.Port() != 0 {
		device = h.routes.device(dst.Addr().Unmap())
	}
	var sockErr error
	err = c.Control(func(fd uintptr) {
		sockErr = markSocket(int(fd), device)
	})
	if err == nil {
		err = sockErr
	}
	if err != nil {
		return fmt.Errorf("keep a %s socket to %s out of the tun: %w", network, address, err)
	}
	return nil
}

func markSocket(fd int, device string) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("set its mark: %w", err)
	}
	if device == "" {
		return nil
	}
	err := unix.BindToDevice(fd, device)
	if errors.Is(err, unix.ENODEV) { // it went this moment: the mark still holds
		return nil
	}
	return err
}

// routeCache remembers by which interface a destination is reached past the
// TUN, until the network changes.
type routeCache struct {
	mu      sync.Mutex
	devices map[netip.Addr]string
}

// device is the interface towards addr if it lies beyond a gateway, else "": on
// the machine itself, on an attached link, or unreachable.
func (r *routeCache) device(addr netip.Addr) string {
	r.mu.Lock()
	name, ok := r.devices[addr]
	r.mu.Unlock()
	if ok {
		return name
	}
	name = lookUpDevice(addr)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.devices == nil || len(r.devices) >= maxRoutes {
		r.devices = make(map[netip.Addr]string)
	}
	r.devices[addr] = name
	return name
}

func (r *routeCache) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.devices = nil
}

func lookUpDevice(addr netip.Addr) string {
	routes, err := netlink.RouteGetWithOptions(net.IP(addr.AsSlice()), &netlink.RouteGetOptions{Mark: mark})
	if err != nil || len(routes) == 0 {
		return ""
	}
	r := routes[0]
	if (r.Gw == nil && r.Via == nil) || r.Type != unix.RTN_UNICAST {
		return ""
	}
	link, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}
