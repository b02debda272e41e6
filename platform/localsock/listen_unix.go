//go:build linux || darwin

package localsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

// socketMode lets every local user connect: PeerOf decides what they may do.
const socketMode = 0o666

// Listen binds the socket at path and returns its listener; the connections it
// accepts are *net.UnixConn. The directory is made (0755) if it is missing; one
// that other users could tamper with is refused. A socket that a dead service of
// this user left is replaced; anything else in the way is an error that says
// what it is. Errors match ErrRunning where a service listens already. Closing
// the listener removes the socket.
func Listen(path string) (net.Listener, error) {
	if err := checkLength(path); err != nil {
		return nil, err
	}
	made, err := makeDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	l := &listener{}
	if made {
		l.dir = filepath.Dir(path)
	}
	if l.lock, err = lockFor(path); err == nil {
		l.UnixListener, err = bind(path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// listener owns the socket, the lock that keeps a second service away, and the
// directory of both, if it was missing.
type listener struct {
	*net.UnixListener          // nil until bound
	lock              *os.File // nil until taken
	dir               string   // "" unless it was missing
	once              sync.Once
	err               error
}

func (l *listener) Close() error {
	l.once.Do(func() {
		if l.UnixListener != nil {
			l.err = l.UnixListener.Close() // and unlinks the socket
		}
		if l.lock != nil {
			unlock(l.lock)
		}
		if l.dir != "" {
			_ = os.Remove(l.dir) // stays where something else lies in it by now
		}
	})
	return l.err
}

// bind makes the socket. It is never open to more people than it ends up being:
// born 0600, then widened to socketMode.
func bind(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		ln.Close()
		return nil, fmt.Errorf("open %s to local users: %w", path, err)
	}
	return ln, nil
}

// removeStale clears the way for bind, if it is ours to clear.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is not a socket (%s); move it away or choose another path", path, kind(fi.Mode()))
	}
	if uid := ownerOf(fi); uid != os.Geteuid() {
		return fmt.Errorf("%s is a socket owned by uid %d, not by this user; stop that program or choose another path", path, uid)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s: %w", path, ErrRunning)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	return nil
}

// makeDir makes dir (made says that it did), or checks that nobody but root and
// this user can replace what is in it or in what it lies in.
func makeDir(dir string) (made bool, err error) {
	err = os.Mkdir(dir, 0o755)
	if err == nil {
		if err = os.Chmod(dir, 0o755); err == nil { // whatever the umask was
			err = checkDir(filepath.Dir(dir))
		}
		return true, err
	}
	if !errors.Is(err, fs.ErrExist) {
		return false, fmt.Errorf("make the socket directory: %w", err)
	}
	fi, err := os.Lstat(dir)
	if err == nil && fi.Mode().Type() == fs.ModeSymlink && trusted(fi) {
		fi, err = os.Stat(dir) // /var/run is root's own link to /run
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("look at the socket directory: %w", err)
	case !fi.IsDir():
		return false, fmt.Errorf("%s is not a directory (%s)", dir, kind(fi.Mode()))
	}
	return false, checkDir(dir)
}

// checkDir refuses a directory in which others could replace the socket.
func checkDir(dir string) error {
	err := paths.CheckDir(dir)
	if bad := (*paths.DirError)(nil); errors.As(err, &bad) {
		return fmt.Errorf("the socket would not be safe in the directory %w; choose another path, or: %s", err, bad.Hint)
	}
	return err
}

// lockFor takes the lock that says "this socket is served", a file beside it. It
// is released by unlock, or by the kernel when the process ends.
func lockFor(socket string) (*os.File, error) {
	path := socket + ".lock"
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the socket's lock: %w", err)
		}
		fi, err := f.Stat()
		if err != nil || !fi.Mode().IsRegular() || ownerOf(fi) != os.Geteuid() {
			f.Close()
			return nil, fmt.Errorf("%s is not a lock file of this user; remove it or choose another path", path)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("%s: %w", socket, ErrRunning)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The former owner may have unlinked it between our open and our lock.
		if now, err := os.Lstat(path); err == nil && os.SameFile(fi, now) {
			return f, nil
		}
		f.Close()
	}
}

// unlock removes the lock file while it is still held, so that nobody can hold
// a file of that name which is gone.
func unlock(f *os.File) {
	os.Remove(f.Name())
	f.Close()
}

// Dial connects to the service at path. It fails with a ForeignServerError if
// neither root nor this user runs it: nothing has been sent then.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	if err := checkLength(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	uid, err := peerUID(conn.(*net.UnixConn))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: who runs the server: %w", path, err)
	}
	if uid != 0 && uid != os.Geteuid() {
		conn.Close()
		return nil, &ForeignServerError{Path: path, UID: uid, Name: userName(uid)}
	}
	return conn, nil
}

// checkLength turns the kernel's bare "invalid argument" into a reason.
func checkLength(path string) error {
	if limit := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return fmt.Errorf("the socket path %s is %d bytes long; the system allows %d", path, len(path), limit)
	}
	return nil
}

func trusted(fi fs.FileInfo) bool {
	uid := ownerOf(fi)
	return uid == 0 || uid == os.Geteuid()
}

func ownerOf(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }

func kind(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a regular file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a fifo"
	}
	return m.Type().String()
}
