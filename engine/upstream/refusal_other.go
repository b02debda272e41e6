//go:build !linux

package upstream

import "syscall"

// hearRefusals does nothing: these systems tell unconnected sockets nothing.
func hearRefusals(syscall.RawConn) {}

func (*directPackets) wasRefused() {}

// toldLate: nor does sending.
func toldLate(syscall.Errno) bool { return false }
