package route

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const settleWithin = flow.SettleWithin

// unacked is flow.Outbox.Unacked for any connection. Of one that cannot tell,
// nothing is.
func unacked(c net.Conn) bool {
	if o, ok := c.(flow.Outbox); ok {
		return o.Unacked()
	}
	info, err := tcpInfo(c)
	return err == nil && info.State != unix.BPF_TCP_CLOSE && (info.Unacked > 0 || info.Notsent_bytes > 0)
}

// gone is flow.Outbox.Gone for any connection. One that cannot tell is not.
func gone(c net.Conn) bool {
	if o, ok := c.(flow.Outbox); ok {
		return o.Gone()
	}
	info, err := tcpInfo(c)
	return errors.Is(err, net.ErrClosed) || err == nil && info.State == unix.BPF_TCP_CLOSE
}

func tcpInfo(c net.Conn) (*unix.TCPInfo, error) {
	sc, ok := socketOf(c).(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var info *unix.TCPInfo
	if e := rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); e != nil {
		return nil, e
	}
	return info, err
}

// socketOf is the kernel socket below a TLS connection.
func socketOf(c net.Conn) net.Conn {
	for {
		below, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = below.NetConn()
	}
}
