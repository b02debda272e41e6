//go:build !linux

package netstack

import (
	"errors"
	"syscall"
)

// rawQueue has no use where no TUN has raw queues.
type rawQueue struct{ conn syscall.RawConn }

type rawReader struct{}

func (rawQueue) reader() *rawReader            { return nil }
func (rawQueue) writev([][]byte) error         { return errors.ErrUnsupported }
func (*rawReader) readv([][]byte) (int, error) { return 0, errors.ErrUnsupported }
