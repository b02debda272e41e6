package netstack

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// rawQueue is the descriptor of one queue of the TUN, in non-blocking mode.
type rawQueue struct{ conn syscall.RawConn }

// rawReader reads one queue; it allocates nothing per packet.
type rawReader struct {
	conn  syscall.RawConn
	try   func(fd uintptr) bool
	parts [][]byte
	n     int
	err   error
}

func (q rawQueue) reader() *rawReader {
	r := &rawReader{conn: q.conn}
	r.try = func(fd uintptr) bool {
		for {
			r.n, r.err = unix.Readv(int(fd), r.parts)
			if r.err != unix.EINTR {
				return r.err != unix.EAGAIN
			}
		}
	}
	return r
}

// readv waits for a packet and reads it into parts.
func (r *rawReader) readv(parts [][]byte) (int, error) {
	r.parts = parts
	if err := r.conn.Read(r.try); err != nil {
		return 0, err
	}
	return r.n, r.err
}

// writev writes the packet in parts, and does not wait: a TUN takes a packet or
// loses it. RawConn.Write would let in one writer at a time.
func (q rawQueue) writev(parts [][]byte) error {
	var err error
	if closed := q.conn.Control(func(fd uintptr) {
		for {
			if _, err = unix.Writev(int(fd), parts); err != unix.EINTR {
				return
			}
		}
	}); closed != nil {
		return closed
	}
	return err
}
