package listener

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// dial opens a connection to the target of a plain HTTP request: a flow like
// any other, whose app is ourselves. said is what the app has said already; it
// has left if sent is true. gone is closed when nobody wants the connection any
// more; then the Handler's context ends.
func (s *server) dial(ctx context.Context, gone <-chan struct{}, src, door netip.AddrPort, t flow.Target, said []byte) (conn *pipe, sent bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err // stopping: open no more flows
	}
	p := &dialPending{target: t, said: said, answer: make(chan dialed), gone: gone}
	ctx, cancel := context.WithCancel(ctx)
	s.running.Go(func() {
		defer cancel()
		s.opts.Handler.HandleStream(ctx, newFlow(flow.TCP, flow.HTTP, src, door, t), p)
		p.Reject(flow.Unreachable) // no effect, unless the Handler forgot
	})
	select {
	case d := <-p.answer:
		return d.conn, p.spoken.Load(), d.err
	case <-gone:
		cancel()
		return nil, false, errAppGone
	}
}

type dialed struct {
	conn *pipe // nil if err is not
	err  error
}

var (
	_ flow.Pending = (*dialPending)(nil)
	_ flow.Spoken  = (*dialPending)(nil)
)

// dialPending is a connection to a target that a request waits for.
type dialPending struct {
	target  flow.Target
	said    []byte
	spoken  atomic.Bool // the Handler has said it
	answer  chan dialed
	gone    <-chan struct{}
	decided atomic.Bool
}

// Spoken implements flow.Spoken.
func (p *dialPending) Spoken() []byte {
	p.spoken.Store(true)
	return slices.Clone(p.said)
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
