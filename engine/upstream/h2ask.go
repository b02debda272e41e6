package upstream

import (
	"context"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/upstream/h2"
)

const (
	h2Stale     = 45 * time.Second       // of silence: a middlebox may have forgotten the connection
	h2HedgeSoon = 250 * time.Millisecond // at least, before another session is asked, if there is reason to doubt this one
	h2HedgeLate = time.Second            // if there is not
)

// ask requests a tunnel in s, of which the caller has a place. A proxy may
// serve fewer streams at once than it admits (Apache: 6 at first, fewer after
// resets) and leave the others waiting, and a session may be dead without our
// knowing: if no answer comes in time another session is asked too, and the
// first answer counts.
func (p *sessions) ask(ctx context.Context, s *h2.Session, r tunnelRequest) (*h2.Stream, h2.Response, error) {
	after := hedgeAfter(s)
	st, err := s.Open(r.authority, r.early, r.fields...)
	if err != nil {
		return nil, h2.Response{}, err
	}
	var timer <-chan time.Time
	if after > 0 {
		t := time.NewTimer(after)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-st.Answered():
		return accept(ctx, st)
	case <-timer:
		return p.askTwo(ctx, s, st, r)
	case <-ctx.Done():
		st.Abandon()
		return nil, h2.Response{}, context.Cause(ctx)
	}
}

// hedgeAfter is how long an answer may take, 0 for any time: alone in a live
// session, only the target can be slow.
func hedgeAfter(s *h2.Session) time.Duration {
	l := s.Load()
	answered, record := s.Answered()
	switch {
	case l.Quiet > h2Stale, answered > 0 && record:
		return max(h2HedgeSoon, 4*l.RTT)
	case answered > 0:
		return max(h2HedgeLate, 8*l.RTT)
	}
	return 0
}

func accept(ctx context.Context, st *h2.Stream) (*h2.Stream, h2.Response, error) {
	r, err := st.Accept(ctx)
	if err != nil || r.Status < 200 || r.Status > 299 {
		return nil, r, err
	}
	return st, r, nil
}

// askTwo asks another session while first, of s, goes on waiting.
func (p *sessions) askTwo(ctx context.Context, s *h2.Session, first *h2.Stream, r tunnelRequest) (*h2.Stream, h2.Response, error) {
	type result struct {
		st  *h2.Stream
		r   h2.Response
		err error
	}
	served, record := s.Answered()
	own, cancel := context.WithCancel(WithTrace(ctx, new(Trace)))
	second := make(chan result, 1)
	go func() {
		st, a, err := p.askOther(own, s, r)
		second <- result{st, a, err}
	}()
	select {
	case <-first.Answered():
	case <-ctx.Done():
		first.Abandon()
	case b := <-second:
		if b.err == nil {
			cancel()
			first.Abandon()
			p.learn(s, served, record)
			return b.st, b.r, nil
		}
		second <- b
		select {
		case <-first.Answered():
		case <-ctx.Done():
			first.Abandon()
		}
	}
	cancel()
	if b := <-second; b.st != nil {
		_ = b.st.Close()
	}
	if err := ctx.Err(); err != nil {
		if st, _, _ := accept(ctx, first); st != nil {
			_ = st.Close()
		}
		return nil, h2.Response{}, context.Cause(ctx)
	}
	return accept(ctx, first)
}

// askOther asks a session other than s, a new one if need be.
func (p *sessions) askOther(ctx context.Context, s *h2.Session, r tunnelRequest) (*h2.Stream, h2.Response, error) {
	other, c, err := p.pick(ctx, tlsTimeout, s)
	if c != nil {
		_ = c.Close()
		return nil, h2.Response{}, errSilent // the proxy no longer speaks HTTP/2
	}
	if err != nil {
		return nil, h2.Response{}, err
	}
	return other.Connect(ctx, r.authority, r.early, r.fields...)
}

// learn notes that s kept a request waiting, for which another session had an
// answer, while it served so many streams.
func (p *sessions) learn(s *h2.Session, served int, record bool) {
	if served < 2 {
		return
	}
	s.Limit(served)
	if !record {
		return // it has served more: this session has a reason of its own
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit, p.limited = served, time.Now()
	for _, s := range p.open {
		s.Limit(served)
	}
}
