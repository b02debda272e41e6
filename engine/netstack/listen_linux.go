package netstack

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindToDevice makes a listening socket reachable only by device (nobody on the
// LAN, nor a local app over loopback, can connect to it), and lets it bind
// before the device has its address.
func bindToDevice(device string) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
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
			return fmt.Errorf("bind to device %q: %w", device, err)
		}
		return nil
	}
}
