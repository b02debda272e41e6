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
	mark bool // what was read is one urgent byte
	try  func(fd uintptr) bool
}

// With urgent it tells urgent bytes from others (RFC 6093), which takes a system
// call more for each read. Without, they are read like all others: sockets have
// SO_OOBINLINE.
func newWaiter(c *net.TCPConn, pool *sync.Pool, urgent bool) (*waiter, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &waiter{rc: rc, pool: pool}
	w.try = func(fd uintptr) bool {
		b := pool.Get().(*[chunkBytes]byte)
		room := b[:]
		if w.mark = urgent && atMark(fd); w.mark {
			room = b[:1]
		}
		for {
			w.n, w.err = unix.Read(int(fd), room)
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

// atMark reports whether the next byte is urgent.
func atMark(fd uintptr) bool {
	at, err := unix.IoctlGetInt(int(fd), unix.SIOCATMARK)
	return err == nil && at == 1
}

// writeUrgent sends b, of which the last byte is urgent.
func writeUrgent(c *net.TCPConn, b []byte) (n int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	e := rc.Write(func(fd uintptr) bool {
		for {
			n, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_OOB|unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if e != nil {
		err = e
	}
	return n, err
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
