//go:build !linux

package netstack

import (
	"errors"
	"syscall"
)

// listenerOptions fails: only Linux has the kernel path.
func listenerOptions(string) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error { return errors.ErrUnsupported }
}
