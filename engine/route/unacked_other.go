//go:build !linux

package route

import (
	"net"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// settleWithin is short where it is mostly spent in full.
const settleWithin = time.Second

// unacked is flow.Outbox.Unacked for any connection. Kernel sockets of these
// systems do not tell: what was written to one counts as on its way until
// settle's time is over.
func unacked(c net.Conn) bool {
	if o, ok := c.(flow.Outbox); ok {
		return o.Unacked()
	}
	_, kernel := c.(*net.TCPConn)
	return kernel
}

// gone is flow.Outbox.Gone for any connection. One that cannot tell is not.
func gone(c net.Conn) bool {
	o, ok := c.(flow.Outbox)
	return ok && o.Gone()
}
