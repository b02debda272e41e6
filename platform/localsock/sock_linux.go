package localsock

import (
	"context"
	"errors"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const systemPath = "/run/atlantic/atlantic.sock"

// listenPrivate binds path with mode 0600. On Linux a socket file gets the mode
// of the socket, so there is no need to touch the umask, which every thread of
// the process shares.
func listenPrivate(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) { inner = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, inner)
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

func peerUID(uc *net.UnixConn) (uid int, err error) {
	err = control(uc, func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			uid = int(cred.Uid)
		}
		return err
	})
	return uid, err
}

// peerGroups returns the peer's groups as of its connect: the effective one by
// SO_PEERCRED, the supplementary ones by SO_PEERGROUPS (Linux 4.13; none before).
func peerGroups(uc *net.UnixConn) (gids []int) {
	control(uc, func(fd int) error {
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			gids = append(gids, int(cred.Gid))
		}
		buf := make([]uint32, 64)
		for {
			n := uint32(len(buf) * 4)
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
			if errno == unix.ERANGE && int(n/4) > len(buf) { // n is what it takes, at most NGROUPS_MAX (65536)
				buf = make([]uint32, n/4)
				continue
			}
			if errno != 0 {
				return errno
			}
			for _, g := range buf[:n/4] {
				gids = append(gids, int(g))
			}
			return nil
		}
	})
	return gids
}
