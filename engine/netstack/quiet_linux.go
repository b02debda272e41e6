package netstack

import (
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// quietQueue reads and writes a queue's descriptor, which does not block, without
// telling Go's scheduler. It wakes a thread of its own before the first system
// call after every pause, and in an exchange of single packets each comes after
// a pause: 2 futex calls of 5 µs a round trip (strace -c, 2026-11-22).
type quietQueue struct {
	platform.Queue
	rc     syscall.RawConn
	writes sync.Pool // *rawWrite
}

const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6

// newQuietQueue returns q itself if it has no descriptor.
func newQuietQueue(q platform.Queue) platform.Queue {
	c, ok := q.(syscall.Conn)
	if !ok {
		return q
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return q
	}
	// Since Linux 6.2 the device also gives and takes datagrams of one size in
	// one packet. Where it cannot, nothing changes.
	_ = rc.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offloads) })
	return &quietQueue{Queue: q, rc: rc}
}

// rawWrite is one write(2).
type rawWrite struct {
	p     []byte
	n     int
	errno syscall.Errno
	call  func(fd uintptr)
}

func (w *rawWrite) write(fd uintptr) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&w.p[0])), uintptr(len(w.p)))
		if w.n, w.errno = int(n), errno; errno != unix.EINTR {
			return
		}
	}
}

// Write implements platform.Queue. p is not empty.
func (q *quietQueue) Write(p []byte) (int, error) {
	w, ok := q.writes.Get().(*rawWrite)
	if !ok {
		w = new(rawWrite)
		w.call = w.write
	}
	defer q.writes.Put(w)
	w.p = p
	if err := q.rc.Control(w.call); err != nil {
		return 0, err
	}
	w.p = nil
	if w.errno != 0 {
		return 0, w.errno
	}
	return w.n, nil
}

// drain reads packets into buf until the queue fails: take is given each and
// says if it must stay in buf until flush, which comes when buf is full or many
// packets were read. empty is called when there are no more, before waiting.
func (q *quietQueue) drain(buf []byte, take func([]byte) bool, flush, empty func()) error {
	var failed error
	err := q.rc.Read(func(fd uintptr) bool {
		used, packets := 0, 0
		for {
			n, errno := readQueue(fd, buf[used:used+bufferBytes], packets == burstPackets)
			switch errno {
			case 0:
			case unix.EAGAIN:
				empty()
				return false
			default:
				flush()
				failed = errno
				return true
			}
			if packets == burstPackets {
				packets = 0
			}
			if packets++; take(buf[used:][:n]) {
				used += (n + 63) &^ 63
			}
			if used+bufferBytes > len(buf) || packets == burstPackets {
				flush()
				used, packets = 0, burstPackets
				runtime.Gosched() // under a flood nobody else would get its turn
			}
		}
	})
	if failed == nil {
		return err
	}
	if _, err := q.Queue.Read(buf); err != nil { // it knows what the error means
		return err
	}
	return failed
}

// readQueue is read(2). With loud, the scheduler is told, whose own thread then
// sees to it that the network is polled however busy we are.
func readQueue(fd uintptr, p []byte, loud bool) (int, syscall.Errno) {
	call := unix.RawSyscall
	if loud {
		call = unix.Syscall
	}
	for {
		n, _, errno := call(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
