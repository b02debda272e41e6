package linux

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Sizes and offsets of struct inet_diag_req_v2 and struct inet_diag_msg
// (linux/inet_diag.h).
const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	diagRequestBytes = unix.NLMSG_HDRLEN + 8 + 48
	diagID           = unix.NLMSG_HDRLEN + 8
	diagUID          = unix.NLMSG_HDRLEN + 64
	diagInode        = unix.NLMSG_HDRLEN + 68
	diagReplyBytes   = unix.NLMSG_HDRLEN + 72
)

// Owner implements platform.Owners by one question to sock_diag(7): the kernel
// looks the socket up as it would for a packet, without going through a list
// (TestOwner's machine: 4 µs, 2026-11-27).
func (h *Host) Owner(network string, local, remote netip.AddrPort) (uid uint32, ok bool) {
	reply, err := h.owners.ask(diagRequest(network, local, remote))
	if err != nil || len(reply) < diagReplyBytes || binary.NativeEndian.Uint16(reply[4:]) != sockDiagByFamily {
		return 0, false
	}
	// A socket without an inode is nobody's any more. Its user is told as root.
	return binary.NativeEndian.Uint32(reply[diagUID:]), binary.NativeEndian.Uint32(reply[diagInode:]) != 0
}

// diagSocket asks the kernel about sockets. The zero value is ready.
type diagSocket struct {
	mu   sync.Mutex
	open bool // guarded by mu
	fd   int  // guarded by mu
}

// ask sends a request and returns its answer, which the kernel has given by the
// time that sending returns.
func (s *diagSocket) ask(request []byte) (reply []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		if s.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG); err != nil {
			return nil, err
		}
		s.open = true
	}
	var b [512]byte
	n := 0
	if err = unix.Sendto(s.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
		n, _, err = unix.Recvfrom(s.fd, b[:], unix.MSG_DONTWAIT)
	}
	if err != nil {
		s.closeLocked() // whatever was left in it is not the next one's answer
	}
	return b[:n], err
}

func (s *diagSocket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked()
}

func (s *diagSocket) closeLocked() {
	if s.open {
		unix.Close(s.fd)
		s.open = false
	}
}

// diagRequest asks for one socket by its two ends.
func diagRequest(network string, local, remote netip.AddrPort) []byte {
	b := make([]byte, diagRequestBytes)
	binary.NativeEndian.PutUint32(b, diagRequestBytes)
	binary.NativeEndian.PutUint16(b[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	q := b[unix.NLMSG_HDRLEN:]
	q[0], q[1] = unix.AF_INET, unix.IPPROTO_TCP
	first, second := local, remote
	if network == "udp" {
		q[1] = unix.IPPROTO_UDP
		first, second = remote, local // udp_dump_one: "src and dst are swapped for historical reasons"
	}
	src, dst := first.Addr().Unmap(), second.Addr().Unmap()
	if src.Is6() || dst.Is6() {
		q[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(q[4:], ^uint32(0)) // in any state
	id := b[diagID:]
	binary.BigEndian.PutUint16(id, first.Port())
	binary.BigEndian.PutUint16(id[2:], second.Port())
	copy(id[4:20], src.AsSlice())
	copy(id[20:36], dst.AsSlice())
	for i := 40; i < 48; i++ {
		id[i] = 0xff // INET_DIAG_NOCOOKIE
	}
	return b
}
