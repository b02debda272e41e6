package route

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const canWait = true

// waiter reads from a socket with a buffer that is taken when there is
// something to read, and not before.
type waiter struct {
	rc   syscall.RawConn
	pool *sync.Pool // *[chunkBytes]byte
	buf  *[chunkBytes]byte
	n    int
	err  error
	try  func(fd uintptr) bool
}

func newWaiter(c *net.TCPConn, pool *sync.Pool) (*waiter, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &waiter{rc: rc, pool: pool}
	w.try = func(fd uintptr) bool {
		b := pool.Get().(*[chunkBytes]byte)
		for {
			w.n, w.err = unix.Read(int(fd), b[:])
			if w.err != unix.EINTR {
				break
			}
		}
		if w.n > 0 {
			w.buf = b
		} else {
			pool.Put(b)
		}
		return w.err != unix.EAGAIN
	}
	return w, nil
}

// read waits for bytes; the caller puts the buffer back if n > 0. It respects
// the read deadline.
func (w *waiter) read() (b *[chunkBytes]byte, n int, err error) {
	if err := w.rc.Read(w.try); err != nil {
		return nil, 0, err
	}
	switch {
	case w.err != nil:
		return nil, 0, os.NewSyscallError("read", w.err)
	case w.n == 0:
		return nil, 0, io.EOF
	}
	b, w.buf = w.buf, nil
	return b, w.n, nil
}
