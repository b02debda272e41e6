//go:build !linux

package upstream

import "syscall"

// batches: other systems carry datagrams one by one.
type batches struct{}

func prepare(syscall.RawConn) {}
