package netstack

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// listenerOptions makes a listening socket reachable only by device (nobody on
// the LAN, nor a local app over loopback, can connect to it; "" is any), and lets
// it bind before the device has its address.
func listenerOptions(device string) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			level, freebind := unix.SOL_IP, unix.IP_FREEBIND
			if network == "tcp6" {
				level, freebind = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			err = errors.Join(
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device),
				unix.SetsockoptInt(int(fd), level, freebind, 1))
		})
		if err = errors.Join(ctlErr, err); err != nil {
			return fmt.Errorf("options of the listener on device %q: %w", device, err)
		}
		return keepAliveOptions(network, address, c)
	}
}

// keepAliveOptions sets keep-alive on a listener, once, because accepted sockets
// inherit it: four system calls fewer per connection.
func keepAliveOptions(network, address string, c syscall.RawConn) error {
	err := flow.UrgentInline(network, address, c)
	ctlErr := c.Control(func(fd uintptr) {
		err = errors.Join(err,
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(flow.KeepAliveIdle.Seconds())),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(flow.KeepAliveInterval.Seconds())),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, flow.KeepAliveCount))
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("keep-alive of a listener: %w", err)
	}
	return nil
}
