package localsock

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const systemPath = "/var/run/atlantic.sock"

// listenPrivate binds path with mode 0600. The umask belongs to the whole
// process: a file that another goroutine makes meanwhile comes out narrower,
// never wider. Call Listen early.
func listenPrivate(path string) (*net.UnixListener, error) {
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

func peerUID(uc *net.UnixConn) (uid int, err error) {
	err = control(uc, func(fd int) error {
		cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		if err == nil {
			uid = int(cred.Uid)
		}
		return err
	})
	return uid, err
}

// peerGroups returns the peer's groups as of its connect (the first 16: the
// group database covers the rest).
func peerGroups(uc *net.UnixConn) (gids []int) {
	control(uc, func(fd int) error {
		cred, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		if err != nil {
			return err
		}
		for _, g := range cred.Groups[:min(max(int(cred.Ngroups), 0), len(cred.Groups))] {
			gids = append(gids, int(g))
		}
		return nil
	})
	return gids
}
