package upstream

import (
	"net"

	"golang.org/x/sys/unix"
)

// limitUnsent has writes to c wait while more than n bytes in it are not on
// their way yet (TCP_NOTSENT_LOWAT): what is written next is then at most that
// far behind, while a full window is still in flight.
func limitUnsent(c *net.TCPConn, n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
	})
}

// unacknowledged says that the other end has not acknowledged all that was
// written to c: after some round trips, that nobody is there.
func unacknowledged(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	n := 0
	err = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err != nil || n > 0
}
