//go:build !linux

package upstream

import (
	"errors"
	"net"
)

const canPeek = false

func peek(*net.TCPConn, []byte) (int, error) { return 0, errors.ErrUnsupported }
