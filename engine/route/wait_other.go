//go:build !linux

package route

import (
	"errors"
	"net"
	"sync"
)

// Without readiness that can be waited for, relays use small buffers.
const canWait = false

type waiter struct{ mark bool }

func newWaiter(*net.TCPConn, *sync.Pool, bool) (*waiter, error) { return nil, errors.ErrUnsupported }

func (*waiter) read() (*[chunkBytes]byte, int, error) { return nil, 0, errors.ErrUnsupported }

func writeUrgent(*net.TCPConn, []byte) (int, error) { return 0, errors.ErrUnsupported }
