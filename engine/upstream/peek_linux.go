package upstream

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const canPeek = true

// peek waits for bytes on c and copies them to b without consuming them; 0 is
// the end of the stream. It respects c's read deadline.
func peek(c *net.TCPConn, b []byte) (n int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, _, rerr = unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if !errors.Is(rerr, unix.EINTR) {
				return !errors.Is(rerr, unix.EAGAIN)
			}
		}
	})
	if err == nil && rerr != nil {
		err = os.NewSyscallError("recvfrom", rerr)
	}
	return max(n, 0), err
}
