package route

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const canPark = true

// lot is where idle relays wait: one epoll descriptor for all of them, so that
// an idle flow holds neither the goroutines of its pumps nor their stacks.
//
//	sockets of parked flows ─► epoll ─► watch (one goroutine) ─► the flow's own goroutine
type lot struct {
	epoll *os.File
	rc    syscall.RawConn

	mu      sync.Mutex
	last    uint64                   // guarded by mu
	tickets map[uint64]chan struct{} // guarded by mu
}

func newLot() (*lot, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // the runtime's poller waits for it
	}
	if err != nil {
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	l := &lot{epoll: os.NewFile(uintptr(fd), "epoll"), tickets: make(map[uint64]chan struct{})}
	if l.rc, err = l.epoll.SyscallConn(); err != nil {
		return nil, fmt.Errorf("watch epoll: %w", err)
	}
	return l, nil
}

// wait blocks until one of the two has something to read or has ended; false
// if ctx ended first.
func (l *lot) wait(ctx context.Context, a, b *net.TCPConn) bool {
	ready := make(chan struct{}, 1)
	l.mu.Lock()
	l.last++
	ticket := l.last
	l.tickets[ticket] = ready
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.tickets, ticket)
		l.mu.Unlock()
		_ = l.control(unix.EPOLL_CTL_DEL, a, 0)
		_ = l.control(unix.EPOLL_CTL_DEL, b, 0)
	}()
	if l.control(unix.EPOLL_CTL_ADD, a, ticket) != nil || l.control(unix.EPOLL_CTL_ADD, b, ticket) != nil {
		return ctx.Err() == nil // reading tells what is wrong
	}
	select {
	case <-ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// control adds c to the set or takes it out. An end counts as something to
// read; one event is enough.
func (l *lot) control(op int, c *net.TCPConn, ticket uint64) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var addErr error
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(uint32(ticket)), Pad: int32(uint32(ticket >> 32))}
	ctlErr := rc.Control(func(fd uintptr) {
		err = l.rc.Control(func(ep uintptr) { addErr = unix.EpollCtl(int(ep), op, int(fd), &ev) })
	})
	return cmp.Or(ctlErr, err, addErr)
}

// watch tells flows that they have something to read, until close.
func (l *lot) watch() {
	var events [128]unix.EpollEvent
	for {
		n := 0
		err := l.rc.Read(func(ep uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(ep), events[:], 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
		if err != nil {
			return
		}
		l.mu.Lock()
		for _, ev := range events[:max(n, 0)] {
			ready := l.tickets[uint64(uint32(ev.Fd))|uint64(uint32(ev.Pad))<<32]
			select {
			case ready <- struct{}{}: // nil, which blocks, if the flow waits no longer
			default:
			}
		}
		l.mu.Unlock()
	}
}

// close ends watch and lets everybody go on who waits.
func (l *lot) close() {
	_ = l.epoll.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ready := range l.tickets {
		select {
		case ready <- struct{}{}:
		default:
		}
	}
}
