package netstack

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Keep-alive probes on accepted connections pass through the translation and
// keep its entry alive (see idleTCP), and find apps that have vanished.
const (
	keepAliveIdle     = 75 * time.Second
	keepAliveInterval = 15 * time.Second
	keepAliveCount    = 4
)

// listenerOptions makes a listening socket reachable only by device (nobody on
// the LAN, nor a local app over loopback, can connect to it), and lets it bind
// before the device has its address. Keep-alive is set here, once, because
// accepted sockets inherit it: four system calls fewer per connection.
func listenerOptions(device string) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		var err error
		ctlErr := c.Control(func(fd uintptr) {
			level, freebind := unix.SOL_IP, unix.IP_FREEBIND
			if network == "tcp6" {
				level, freebind = unix.SOL_IPV6, unix.IPV6_FREEBIND
			}
			err = errors.Join(
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device),
				unix.SetsockoptInt(int(fd), level, freebind, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAliveIdle.Seconds())),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAliveInterval.Seconds())),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAliveCount))
		})
		if err = errors.Join(ctlErr, err); err != nil {
			return fmt.Errorf("options of the listener on device %q: %w", device, err)
		}
		return nil
	}
}
