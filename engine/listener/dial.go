package listener

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// dial opens a connection of the HTTP transport: a flow like any other, whose
// app is ourselves. The Handler gets ctx; wait ends when nobody wants the
// connection any more.
func (s *server) dial(ctx, wait context.Context, address string) (net.Conn, error) {
	t, err := targetOfAuthority(address, 80)
	if err != nil {
		return nil, err
	}
	var src netip.AddrPort
	if app, ok := wait.Value(appKey{}).(*webConn); ok {
		src = flow.AddrPortOf(app.RemoteAddr()) // of the request that came first; later ones share the connection
	}
	if err := ctx.Err(); err != nil {
		return nil, err // stopping: open no more flows
	}
	answer := make(chan dialed)
	p := &dialPending{target: t, answer: answer, gone: wait.Done()}
	s.running.Go(func() {
		s.opts.Handler.HandleStream(ctx, newFlow(flow.TCP, flow.HTTP, src, t), p)
		p.Reject(flow.Unreachable) // no effect, unless the Handler forgot
	})
	select {
	case d := <-answer:
		return d.conn, d.err
	case <-wait.Done():
		return nil, context.Cause(wait)
	}
}

type dialed struct {
	conn net.Conn // nil if err is not
	err  error
}

var _ flow.Pending = (*dialPending)(nil)

// dialPending is a connection that the HTTP transport waits for.
type dialPending struct {
	target  flow.Target
	answer  chan<- dialed
	gone    <-chan struct{}
	decided atomic.Bool
}

// Accept implements flow.Pending.
func (p *dialPending) Accept() (flow.StreamConn, error) {
	if p.decided.Swap(true) {
		return nil, fmt.Errorf("accept request: %w", net.ErrClosed)
	}
	ours, theirs := newPipe()
	if !p.tell(dialed{conn: ours}) {
		ours.Close()
		theirs.Close()
		return nil, fmt.Errorf("accept request for %s: the app has gone", p.target)
	}
	return theirs, nil
}

// Reject implements flow.Pending.
func (p *dialPending) Reject(reason flow.Reason) {
	if !p.decided.Swap(true) {
		p.tell(dialed{err: &refusal{target: p.target, reason: reason}})
	}
}

// tell is false if nobody waits.
func (p *dialPending) tell(d dialed) bool {
	select {
	case p.answer <- d:
		return true
	case <-p.gone:
		return false
	}
}
