package upstream

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// canPeek says that a peeker sees what was received without consuming it.
const canPeek = true

// peeker looks at what a connection has received. Its closures are made once,
// so that looking allocates next to nothing. It has one user at a time.
type peeker struct {
	raw  syscall.RawConn
	wait func(fd uintptr) bool
	poll func(fd uintptr)
	b    []byte
	n    int
	err  error
	fds  [1]unix.PollFd
}

// newPeeker is nil for a nil connection.
func newPeeker(c *net.TCPConn) *peeker {
	if c == nil {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	p := &peeker{raw: raw}
	p.wait = func(fd uintptr) bool {
		p.look(int(fd))
		return !errors.Is(p.err, unix.EAGAIN)
	}
	p.poll = func(fd uintptr) {
		p.fds[0].Fd, p.fds[0].Revents = int32(fd), 0
		for {
			if _, p.err = unix.Poll(p.fds[:], 0); !errors.Is(p.err, unix.EINTR) {
				return
			}
		}
	}
	return p
}

func (p *peeker) look(fd int) {
	for {
		p.n, _, p.err = unix.Recvfrom(fd, p.b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if !errors.Is(p.err, unix.EINTR) {
			return
		}
	}
}

// peek waits for bytes and copies them to b without consuming them; 0 is the
// end of the stream. It respects the connection's read deadline.
func (p *peeker) peek(b []byte) (n int, err error) {
	p.b = b
	err = p.raw.Read(p.wait)
	p.b = nil
	if err == nil && p.err != nil {
		err = os.NewSyscallError("recvfrom", p.err)
	}
	if err != nil {
		return 0, err
	}
	return p.n, nil
}

// alive says that the other end has neither closed the connection nor, unless
// maySpeak, sent anything. It does not block.
func (p *peeker) alive(maySpeak bool) bool {
	if p == nil {
		return false
	}
	p.fds[0].Events = unix.POLLRDHUP // also of a FIN behind bytes that nobody has read
	if !maySpeak {
		p.fds[0].Events |= unix.POLLIN
	}
	err := p.raw.Control(p.poll)
	return err == nil && p.err == nil && p.fds[0].Revents == 0
}
