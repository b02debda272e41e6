package upstream

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	sendDatagrams = 64       // handed to the kernel in one call
	sendSegments  = 64       // of one message (UDP_MAX_SEGMENTS; newer kernels take 128)
	sendTogether  = 65000    // bytes of one message of several datagrams
	headBytes     = 4 << 10  // headers of one call
	recvMessages  = 16       // taken from the kernel in one call
	recvBytes     = 66 << 10 // of one message, which may be many datagrams (UDP_GRO); and 2 KiB, so that they do not share cache sets
	socketBytes   = 2 << 20  // of a socket's buffers: 27 ms of 100,000 small datagrams a second
	maxFailures   = 8        // errors in a row that a receiver bears
)

// The system calls here never block, and are made without telling Go's
// scheduler. It wakes a thread of its own before the first system call after
// every pause, and in an exchange of single datagrams each comes after a pause:
// 2 futex calls of 5 µs a round trip (strace -c, 2026-11-22).

// batches are what the sockets of one upstream share: memory is held only
// while a burst is carried. The zero value is ready.
type batches struct{ sends, recvs sync.Pool }

// sendBatch is the memory of one sendmmsg(2).
type sendBatch struct {
	msgs     [sendDatagrams]unix.Mmsghdr
	segments [sendDatagrams]int // datagrams in each message
	names    [sendDatagrams]unix.RawSockaddrInet6
	control  [sendDatagrams][]byte
	iovs     [2 * sendDatagrams]unix.Iovec // header and payload of each datagram
	heads    []byte

	n         int // datagrams
	from, end int // messages that are still to go
	total     int // bytes of the last message
	size      int // of its datagrams; 0 if no more may join it
	to        netip.AddrPort

	refused bool // the kernel has told of one

	sent  int
	errno syscall.Errno
	call  func(fd uintptr)
}

func (p *batches) sending() *sendBatch {
	b, ok := p.sends.Get().(*sendBatch)
	if !ok {
		b = &sendBatch{heads: make([]byte, 0, headBytes)}
		space := unix.CmsgSpace(2)
		all := make([]byte, sendDatagrams*space)
		for i := range b.control {
			b.control[i] = all[i*space : (i+1)*space]
		}
		b.call = b.sendmmsg
	}
	b.reset()
	return b
}

func (b *sendBatch) reset() {
	b.n, b.from, b.end, b.size, b.heads, b.refused = 0, 0, 0, 0, b.heads[:0], false
}

// fits reports whether there is room for a datagram with a header of n bytes.
func (b *sendBatch) fits(n int) bool {
	return b.n < sendDatagrams && len(b.heads)+n <= cap(b.heads)
}

// add appends a datagram to `to`, or, if that is not valid, to where the socket
// is connected. Datagrams of one size and destination make one message where
// the kernel is to cut it (UDP_SEGMENT).
func (b *sendBatch) add(head, data []byte, to netip.AddrPort, v6, together bool) {
	iov := b.iovs[2*b.n : 2*b.n+2]
	b.n++
	setIovec(&iov[0], head)
	setIovec(&iov[1], data)
	n := len(head) + len(data)
	if together && b.size != 0 && n > 0 && n <= b.size && to == b.to && b.total+n <= sendTogether && b.segments[b.end-1] < sendSegments {
		h := &b.msgs[b.end-1].Hdr
		b.segments[b.end-1]++
		h.SetIovlen(2 * b.segments[b.end-1])
		putSegment(h, b.control[b.end-1], b.size)
		b.total += n
		if n < b.size {
			b.size = 0 // only the last may be shorter
		}
		return
	}
	h := &b.msgs[b.end].Hdr
	*h = unix.Msghdr{Iov: &iov[0]}
	h.SetIovlen(2)
	if to.IsValid() {
		h.Name = (*byte)(unsafe.Pointer(&b.names[b.end]))
		h.Namelen = putSockaddr(&b.names[b.end], to, v6)
	}
	b.segments[b.end] = 1
	b.end++
	b.total, b.size, b.to = n, n, to
}

// flush sends what was added, as BatchSender.Send says. A kernel or device that
// cannot cut messages has alone set, and gets the datagrams one by one.
func (b *sendBatch) flush(rc syscall.RawConn, alone *atomic.Bool) (done, lost int, err error) {
	again := true
	for b.from < b.end {
		if err := rc.Control(b.call); err != nil { // closed
			left := b.n - done
			return b.n, lost + left, err
		}
		for range b.sent {
			done += b.segments[b.from]
			b.from++
		}
		switch {
		case b.sent > 0 || b.errno == unix.EINTR:
			again = true
		case again && toldLate(b.errno): // a datagram's before, perhaps: this one has not been tried
			again, b.refused = false, true
		case b.errno == unix.EAGAIN:
			return done, lost, err
		case b.segments[b.from] > 1:
			if b.errno == unix.EIO || b.errno == unix.EINVAL || b.errno == unix.EMSGSIZE || b.errno == unix.EOPNOTSUPP {
				alone.Store(true)
			}
			b.split(done)
		default:
			done, lost, err = done+1, lost+1, b.errno
			b.from++
		}
	}
	return done, lost, err
}

func (b *sendBatch) sendmmsg(fd uintptr) {
	b.sent, b.errno = 0, 0
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.msgs[b.from])),
		uintptr(b.end-b.from), unix.MSG_DONTWAIT, 0, 0)
	if b.errno = errno; errno == 0 {
		b.sent = int(n)
	}
}

// split makes a message of every datagram from the done-th on.
func (b *sendBatch) split(done int) {
	name, namelen := b.msgs[b.from].Hdr.Name, b.msgs[b.from].Hdr.Namelen
	heads := make([]unix.Mmsghdr, 0, b.n-done)
	left := b.segments[b.from]
	for i, at := done, b.from; i < b.n; i++ {
		if left == 0 {
			at++
			left = b.segments[at]
			name, namelen = b.msgs[at].Hdr.Name, b.msgs[at].Hdr.Namelen
		}
		left--
		m := unix.Mmsghdr{Hdr: unix.Msghdr{Iov: &b.iovs[2*i], Name: name, Namelen: namelen}}
		m.Hdr.SetIovlen(2)
		heads = append(heads, m)
	}
	b.from, b.end = 0, len(heads)
	copy(b.msgs[:], heads)
	for i := range heads {
		b.segments[i] = 1
	}
}

// recvBatch is the memory of one recvmmsg(2).
type recvBatch struct {
	msgs    [recvMessages]unix.Mmsghdr
	names   [recvMessages]unix.RawSockaddrInet6
	iovs    [recvMessages]unix.Iovec
	control [recvMessages][]byte
	buf     []byte
	out     []flow.Datagram
}

func (p *batches) receiving() *recvBatch {
	b, ok := p.recvs.Get().(*recvBatch)
	if !ok {
		space := unix.CmsgSpace(4)
		b = &recvBatch{buf: make([]byte, recvMessages*recvBytes), out: make([]flow.Datagram, 0, sendDatagrams)}
		control := make([]byte, recvMessages*space)
		for i := range b.msgs {
			b.control[i] = control[i*space : (i+1)*space]
			setIovec(&b.iovs[i], b.buf[i*recvBytes:(i+1)*recvBytes])
		}
	}
	return b
}

// recvmmsg takes what is there, at most recvMessages.
func (b *recvBatch) recvmmsg(fd uintptr) (int, syscall.Errno) {
	for i := range b.msgs {
		h := &b.msgs[i].Hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names[i])), unix.SizeofSockaddrInet6
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Control = &b.control[i][0]
		h.SetControllen(len(b.control[i]))
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.msgs[0])), recvMessages, unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// receive calls f with what arrives, each datagram as accept makes it, until
// the socket fails or is closed; see flow.BatchReceiver. What the socket's
// buffer had no room for is added to overflow. explain, if not nil, takes the
// reasons of an error that is not the socket's own, and reports whether there
// were any.
func (p *batches) receive(rc syscall.RawConn, overflow *atomic.Uint64, explain func(fd uintptr) bool, accept func(data []byte, from netip.AddrPort) (flow.Datagram, bool), f func([]flow.Datagram)) error {
	var dropped uint32
	var failed error
	failures := 0
	// One call of Read lasts as long as the socket: false makes it wait for the
	// next arrival, without another look at a socket that is known to be empty.
	err := rc.Read(func(fd uintptr) bool {
		b := p.receiving()
		defer p.recvs.Put(b)
		for {
			n, errno := b.recvmmsg(fd)
			switch {
			case errno == unix.EAGAIN:
				return false
			case errno != 0 && explain != nil && explain(fd):
				continue
			case errno != 0: // it may report that one peer is unreachable and work on
				if failures++; failures >= maxFailures {
					failed = errno
					return true
				}
				continue
			}
			failures = 0
			b.deliver(n, accept, f)
			if n < recvMessages {
				return false
			}
			dropped = countDrops(fd, dropped, overflow)
			runtime.Gosched()
		}
	})
	_ = rc.Control(func(fd uintptr) { countDrops(fd, dropped, overflow) })
	if failed != nil {
		return failed
	}
	return err
}

// deliver calls f with the datagrams in the first n messages.
func (b *recvBatch) deliver(n int, accept func([]byte, netip.AddrPort) (flow.Datagram, bool), f func([]flow.Datagram)) {
	b.out = b.out[:0]
	for i := range n {
		m := &b.msgs[i]
		data := b.buf[i*recvBytes:][:m.Len]
		from := sockaddr(&b.names[i], m.Hdr.Namelen)
		size := segmentBytes(b.control[i][:m.Hdr.Controllen])
		if size <= 0 {
			size = len(data)
		}
		for first := true; first || len(data) > 0; first = false {
			k := min(size, len(data))
			if d, ok := accept(data[:k], from); ok {
				b.out = append(b.out, d)
			}
			data = data[k:]
			if len(b.out) == cap(b.out) {
				f(b.out)
				b.out = b.out[:0]
			}
		}
	}
	if len(b.out) > 0 {
		f(b.out)
	}
}

// countDrops adds what the kernel has dropped for want of room since it said
// before, and returns what it says now.
func countDrops(fd uintptr, before uint32, overflow *atomic.Uint64) uint32 {
	var info [9]uint32 // SK_MEMINFO_VARS
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return before
	}
	now := info[8] // SK_MEMINFO_DROPS
	overflow.Add(uint64(now - before))
	return now
}

// prepare gives a socket room for bursts and lets the kernel join what arrives.
// All of it is best effort. It reports that the kernel may cut messages into
// datagrams, until one shows that it cannot.
func (*batches) prepare(rc syscall.RawConn) (cuts bool) {
	_ = rc.Control(func(fd uintptr) {
		for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, socketBytes) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, plain, socketBytes)
			}
		}
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	})
	return true
}

func setIovec(v *unix.Iovec, b []byte) {
	v.Base = nil
	if len(b) > 0 {
		v.Base = &b[0]
	}
	v.SetLen(len(b))
}

// putSegment has h cut into datagrams of size bytes.
func putSegment(h *unix.Msghdr, control []byte, size int) {
	c := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(control[unix.CmsgLen(0):], uint16(size))
	h.Control = &control[0]
	h.SetControllen(len(control))
}

// segmentBytes is the size of the datagrams that a message was joined from; 0
// if it was not.
func segmentBytes(control []byte) int {
	if len(control) < unix.CmsgLen(4) {
		return 0
	}
	c := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	if c.Level != unix.IPPROTO_UDP || c.Type != unix.UDP_GRO {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(control[unix.CmsgLen(0):])))
}

// putSockaddr writes to, mapped into IPv6 where v6 says that the socket is that.
func putSockaddr(s *unix.RawSockaddrInet6, to netip.AddrPort, v6 bool) uint32 {
	port := (*[2]byte)(unsafe.Pointer(&s.Port))
	binary.BigEndian.PutUint16(port[:], to.Port())
	if v6 {
		s.Family, s.Flowinfo, s.Scope_id, s.Addr = unix.AF_INET6, 0, 0, to.Addr().As16()
		return unix.SizeofSockaddrInet6
	}
	s4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(s)) // the port is at the same place
	s4.Family, s4.Addr, s4.Zero = unix.AF_INET, to.Addr().As4(), [8]uint8{}
	return unix.SizeofSockaddrInet4
}

// sockaddr reads an address, unmapped.
func sockaddr(s *unix.RawSockaddrInet6, n uint32) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&s.Port))[:])
	switch {
	case n >= unix.SizeofSockaddrInet4 && s.Family == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(s)).Addr), port)
	case n >= unix.SizeofSockaddrInet6 && s.Family == unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}
