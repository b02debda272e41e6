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
// so that looking allocates nothing. It has one user at a time.
type peeker struct {
	raw  syscall.RawConn
	wait func(fd uintptr) bool
	once func(fd uintptr)
	b    []byte
	n    int
	err  error
	one  [1]byte
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
	p.once = func(fd uintptr) { p.look(int(fd)) }
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
	if maySpeak {
		return p.established()
	}
	p.b = p.one[:]
	err := p.raw.Control(p.once)
	p.b = nil
	return err == nil && errors.Is(p.err, unix.EAGAIN)
}

// established asks TCP, which knows of a FIN behind bytes that nobody has read.
func (p *peeker) established() bool {
	ok := false
	err := p.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		ok = err == nil && info.State == unix.BPF_TCP_ESTABLISHED
	})
	return err == nil && ok
}
