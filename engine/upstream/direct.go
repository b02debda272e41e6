package upstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// direct reaches targets by the physical network, without a proxy.
type direct struct {
	net   *netDialer
	stats *counters
	batches
}

func (d *direct) open(ctx context.Context, a ask) (flow.StreamConn, error) {
	tr := traceOf(ctx)
	begin := time.Now()
	c, err := d.dial(ctx, a.t)
	tr.Dial = time.Since(begin)
	if err != nil {
		return nil, directFault(err)
	}
	if len(a.early) > 0 {
		release := until(ctx, c, handshakeTimeout)
		_, err := c.Write(a.early)
		if whole := release(); err != nil || !whole {
			c.Close()
			return nil, directFault(errors.Join(err, ctx.Err()))
		}
	}
	return c, nil
}

// dial prefers the address the app chose; a name is resolved only without one.
func (d *direct) dial(ctx context.Context, t flow.Target) (*net.TCPConn, error) {
	if t.Addr.IsValid() {
		return d.net.dialAddrs(ctx, []netip.Addr{t.Addr}, t.Port)
	}
	addrs, err := d.net.resolve(ctx, t.Name)
	if err == nil {
		addrs, err = guardOf(ctx).admit(addrs, t.Port)
	}
	if err != nil {
		return nil, err
	}
	return d.net.dialAddrs(ctx, addrs, t.Port)
}
