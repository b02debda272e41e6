//go:build !linux

package route

import (
	"context"
	"errors"
	"net"
)

// canPark is false: relays that are idle keep their goroutines.
const canPark = false

type lot struct{}

func newLot() (*lot, error)                                        { return nil, errors.ErrUnsupported }
func (*lot) wait(context.Context, *net.TCPConn, *net.TCPConn) bool { return true }
func (*lot) watch()                                                {}
func (*lot) close()                                                {}
