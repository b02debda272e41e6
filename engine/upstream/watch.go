package upstream

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// How soon a dead proxy is noticed that nobody uses: within 3 seconds the kernel
// has had no answer to a keep-alive, within 1.9 more a new connection had none.
// That costs two empty packets in 2 seconds and wakes nobody; a request, or a
// connection each time, would cost more.
const (
	watchIdle    = 2 * time.Second
	watchProbe   = time.Second             // for the answer
	watchConnect = 1900 * time.Millisecond // a SYN and one more
	watchAgain   = 700 * time.Millisecond  // after a refusal: a proxy that restarts
	watchEvery   = 3 * time.Second         // between connections to a proxy that hangs up on idle ones
)

// Watch holds a connection to the proxy that asks for nothing, and returns an
// *Error as soon as the proxy cannot be connected to any more, unless flows get
// through; nil once ctx has ended. A group counts as gone if none of its best
// endpoints passes Check.
func (u *Upstream) Watch(ctx context.Context) error {
	if u.spec.Scheme == proxy.Direct {
		<-ctx.Done()
		return nil
	}
	for {
		begin, flows := time.Now(), u.stats.flows.Load()
		err := u.stay(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && u.group != nil:
			err = u.Check(ctx)
		}
		if err != nil && ctx.Err() == nil && u.stats.flows.Load() == flows {
			return u.wrap(ctx, err)
		}
		wait(ctx, time.Until(begin.Add(watchEvery)))
	}
}

// stay returns nil once a connection to the proxy has ended that could be made,
// and why none can be.
func (u *Upstream) stay(ctx context.Context) error {
	c, err := u.knock(ctx)
	if errors.Is(err, syscall.ECONNREFUSED) {
		wait(ctx, watchAgain)
		c, err = u.knock(ctx)
	}
	if err != nil {
		return err
	}
	release := until(ctx, c, 24*time.Hour)
	var b [1]byte
	_, _ = c.Read(b[:]) // until it ends, or the proxy says something unasked
	release()
	abort(c)
	return nil
}

// knock connects to the proxy.
func (u *Upstream) knock(ctx context.Context) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, watchConnect)
	defer cancel()
	spec := u.spec
	if u.group != nil {
		e, err := u.group.r.Pick(resolve.Key{})
		if err != nil {
			return nil, groupFault(u.group.r, err)
		}
		spec = specOf(e)
	}
	c, err := u.net.dialProxy(ctx, spec, &u.stats)
	if err != nil {
		return nil, err
	}
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: watchIdle, Interval: watchProbe, Count: 1})
	return c, nil
}
