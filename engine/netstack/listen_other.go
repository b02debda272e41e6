//go:build !linux

package netstack

import (
	"errors"
	"syscall"
)

// bindToDevice fails: only Linux has the kernel path.
func bindToDevice(string) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error { return errors.ErrUnsupported }
}
