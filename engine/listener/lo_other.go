//go:build !linux

package listener

import "syscall"

// onLoopback does nothing: these systems take no packet to a loopback address
// from elsewhere.
func onLoopback(string, string, syscall.RawConn) error { return nil }
