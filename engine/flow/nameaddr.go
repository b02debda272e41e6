package flow

import (
	"net"
	"strconv"
)

// NameAddr is the net.Addr of a UDP destination that is known by name only: a
// SOCKS5 client may send datagrams to a host name (RFC 1928 section 7). Where
// such a client is the app, ReadFrom of the net.PacketConn that a Handler gets
// returns it (as a value) instead of *net.UDPAddr.
type NameAddr struct {
	Name string // lower case, without a trailing dot
	Port uint16
}

var _ net.Addr = NameAddr{}

func (NameAddr) Network() string { return "udp" }

func (a NameAddr) String() string {
	return net.JoinHostPort(a.Name, strconv.Itoa(int(a.Port)))
}
