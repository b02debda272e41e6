package listener

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// onLoopback keeps a socket to what comes in by lo. The address alone does not:
// with net.ipv4.conf.*.route_localnet=1 a neighbour reaches 127.0.0.1 of this
// machine from the LAN. An IPv6 neighbour never reaches ::1. Kernels before 5.7
// want CAP_NET_RAW for it, and go without.
func onLoopback(network, _ string, c syscall.RawConn) error {
	if network == "tcp6" || network == "udp6" {
		return nil
	}
	var err error
	ctlErr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") })
	if err = errors.Join(ctlErr, err); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("bind to lo: %w", err)
	}
	return nil
}
