package upstream

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

var _ flow.RefusalTeller = (*directPackets)(nil)

// hearRefusals has the kernel queue the ICMP errors that datagrams of an
// unconnected socket meet (IP_RECVERR, ip(7)). They also fail the next call on
// the socket, once.
func hearRefusals(rc syscall.RawConn) {
	_ = rc.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1) // fails on an IPv4 socket
	})
}

// toldLate says that an error of sending may be that of a datagram before, of
// which ICMP has told since (icmp_err_convert and icmpv6_err_convert of Linux).
func toldLate(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET,
		unix.EACCES, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EMSGSIZE:
		return true
	}
	return false
}

// wasRefused is called when sending was told of a refusal: receiving is not any
// more then.
func (c *directPackets) wasRefused() { _ = c.raw.Control(func(fd uintptr) { c.tellRefusals(fd) }) }

// tellRefusals empties the queue of errors and tells of port unreachable, which
// alone a connected socket would hear of (RFC 1122 section 4.1.3.3); the others
// may pass. It reports whether there was any.
func (c *directPackets) tellRefusals(fd uintptr) (some bool) {
	var control [256]byte
	for {
		var name unix.RawSockaddrInet6
		var data [1]byte
		iov := unix.Iovec{Base: &data[0]}
		iov.SetLen(len(data))
		h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&name)), Namelen: unix.SizeofSockaddrInet6, Iov: &iov, Control: &control[0]}
		h.SetIovlen(1)
		h.SetControllen(len(control))
		_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return some
		}
		some = true
		if f := c.refused.Load(); f != nil && portUnreachable(control[:h.Controllen]) {
			if to := sockaddr(&name, h.Namelen); to.IsValid() {
				(*f)(to)
			}
		}
	}
}

// portUnreachable looks for that in a struct sock_extended_err: ICMP type 3 code
// 3 or ICMPv6 type 1 code 4.
func portUnreachable(control []byte) bool {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		n := int(h.Len)
		if n < unix.SizeofCmsghdr || n > len(control) {
			return false
		}
		e := control[unix.CmsgLen(0):n]
		is4 := h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR
		is6 := h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
		if (is4 || is6) && len(e) >= 8 {
			switch origin, kind, code := e[4], e[5], e[6]; origin {
			case unix.SO_EE_ORIGIN_ICMP:
				return kind == 3 && code == 3
			case unix.SO_EE_ORIGIN_ICMP6:
				return kind == 1 && code == 4
			}
			return false
		}
		control = control[min(unix.CmsgSpace(n-unix.SizeofCmsghdr), len(control)):]
	}
	return false
}
