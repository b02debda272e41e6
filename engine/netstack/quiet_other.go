//go:build !linux

package netstack

import (
	"errors"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// quietQueue: other systems have no raw queues.
type quietQueue struct{ platform.Queue }

func newQuietQueue(q platform.Queue) platform.Queue { return q }

func (*quietQueue) drain([]byte, func([]byte) bool, func(), func()) error {
	return errors.ErrUnsupported
}
