//go:build !linux

package netstack

import (
	"errors"
	"net"
	"net/netip"
)

// originalDst fails: only Linux has the redirect.
func originalDst(*net.TCPConn) (netip.AddrPort, error) {
	return netip.AddrPort{}, errors.ErrUnsupported
}
