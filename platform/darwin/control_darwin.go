package darwin

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// Control binds a socket to the interface that its destination is to be reached
// by (IP_BOUND_IF, IPV6_BOUND_IF: a scoped route lookup, which the halves in the
// TUN do not enter). Loopback is left alone.
func (h *Host) Control(network, address string, c syscall.RawConn) error {
	dst, loopback := physical.Destination(address)
	if loopback {
		return nil
	}
	is6 := strings.HasSuffix(network, "6")
	index := h.net.Load().Via(dst, is6)
	if index == 0 {
		return fmt.Errorf("no physical network for %s %s: %w", network, address, unix.ENETUNREACH)
	}
	var inner error
	err := c.Control(func(fd uintptr) {
		if is6 {
			inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_BOUND_IF, index)
		} else {
			inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BOUND_IF, index)
		}
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return fmt.Errorf("bind %s %s to interface %d: %w", network, address, index, err)
	}
	return nil
}
