package flow

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// UrgentInline is a Control of net.Dialer and net.ListenConfig: urgent bytes stay
// in the stream (RFC 6093 section 6), where a relay reads them; otherwise it would
// lose them. Accepted connections inherit it.
func UrgentInline(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
}
