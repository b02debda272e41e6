//go:build !linux

package upstream

import "syscall"

// batches: other systems carry datagrams one by one.
type batches struct{}

// prepare reports that a message is not cut into datagrams here.
func (*batches) prepare(syscall.RawConn) (cuts bool) { return false }
