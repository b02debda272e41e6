package upstream

import (
	"context"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/upstream/h2"
)

const (
	h2Asks       = 4                       // sessions at most that one flow asks at once
	h2Stale      = 45 * time.Second        // of silence: a middlebox may have forgotten the connection
	h2HedgeSoon  = 250 * time.Millisecond  // at least, before another session is asked, if there is reason to doubt this one
	h2HedgeLate  = time.Second             // if there is not
	h2HedgeAlone = 2500 * time.Millisecond // where nothing but the target seems slow
	h2LeastTold  = 4                       // streams that a proxy is thought to serve in any session: fewer, and the target was slow
)

// ask requests a tunnel in s, of which the caller has a place. A proxy may
// serve fewer streams at once than it admits (Apache: 6 at first, fewer after
// resets) and leave the others waiting, and a session may be dead without our
// knowing: if no answer comes in time other sessions are asked too, and the
// first answer counts.
func (p *sessions) ask(ctx context.Context, s *h2.Session, r tunnelRequest) (*h2.Stream, h2.Response, error) {
	stale := s.Load().Quiet > h2Stale
	st, err := s.Open(r.authority, r.early, r.fields...)
	if err != nil {
		return nil, h2.Response{}, err
	}
	begin, timer := time.Now(), time.NewTimer(hedgeAfter(s, stale))
	defer timer.Stop()
	for {
		select {
		case <-st.Answered():
			return accept(ctx, st)
		case <-ctx.Done():
			st.Abandon()
			return nil, h2.Response{}, context.Cause(ctx)
		case <-timer.C:
		}
		// Alone in a live session, only the target can be slow; but nghttpx has
		// left the last requests of a burst waiting for ever.
		served, record := s.Answered()
		if !r.alone && (served > 0 || stale || time.Since(begin) > h2HedgeAlone) {
			h := &hedge{p: p, r: r, asked: map[*h2.Session]bool{s: true}, served: served, record: record}
			return h.run(ctx, s, st)
		}
		timer.Reset(hedgeAfter(s, stale))
	}
}

// serves says that s, in which the caller has the only place of all, will take
// up its request at once, so that no other session need be asked. Beside others
// it may be left waiting: nghttpx 1.52 answers 8 requests to one host in a
// session at a time (27 November 2026).
func (p *sessions) serves(s *h2.Session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	streams := p.waiting
	for _, o := range p.open {
		streams += o.Load().Streams
	}
	return streams <= 1 && s.Load().Quiet <= h2Stale
}

// hedgeAfter is how long an answer may take.
func hedgeAfter(s *h2.Session, stale bool) time.Duration {
	rtt := s.Load().RTT
	if _, record := s.Answered(); record || stale {
		return max(h2HedgeSoon, 4*rtt)
	}
	return max(h2HedgeLate, 8*rtt)
}

// awaitAnswer waits for the answer to st.
func awaitAnswer(ctx context.Context, st *h2.Stream) (*h2.Stream, h2.Response, error) {
	select {
	case <-st.Answered():
		return accept(ctx, st)
	case <-ctx.Done():
		st.Abandon()
		return nil, h2.Response{}, context.Cause(ctx)
	}
}

func accept(ctx context.Context, st *h2.Stream) (*h2.Stream, h2.Response, error) {
	r, err := st.Accept(ctx)
	if err != nil || r.Status < 200 || r.Status > 299 {
		return nil, r, err
	}
	return st, r, nil
}

// hedge is one request that several sessions are asked for.
type hedge struct {
	p      *sessions
	r      tunnelRequest
	served int  // streams of the first session, while the request waited
	record bool // it has never served more

	mu    sync.Mutex
	asked map[*h2.Session]bool // guarded by mu
}

type asked struct {
	st    *h2.Stream
	r     h2.Response
	err   error
	first bool
}

// run asks more and more sessions while st, of s, goes on waiting.
func (h *hedge) run(ctx context.Context, s *h2.Session, st *h2.Stream) (*h2.Stream, h2.Response, error) {
	undo := h.p.suspect(s, h.served, h.record)
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan asked, h2Asks)
	go func() {
		st, r, err := awaitAnswer(own, st)
		answers <- asked{st, r, err, true}
	}()
	more := func() {
		go func() {
			st, r, err := h.askOther(WithTrace(own, new(Trace)))
			answers <- asked{st, r, err, false}
		}()
	}
	more()
	running, started := 2, 2
	next := time.NewTicker(h2HedgeLate)
	defer next.Stop()
	var last asked
	for running > 0 {
		select {
		case a := <-answers:
			running--
			if last.err == nil || a.first {
				last = a
			}
			if a.err != nil {
				continue
			}
			last = a
			cancel()
			for ; running > 0; running-- { // each ends at once now
				if b := <-answers; b.st != nil {
					_ = b.st.Close()
				}
			}
		case <-next.C:
			if started < h2Asks {
				started++
				running++
				more()
			}
		}
	}
	if last.first || last.err != nil {
		undo()
	}
	if last.err != nil && ctx.Err() != nil {
		return nil, h2.Response{}, context.Cause(ctx)
	}
	return last.st, last.r, last.err
}

// askOther asks a session that has not been asked, a new one if need be.
func (h *hedge) askOther(ctx context.Context) (*h2.Stream, h2.Response, error) {
	s, c, err := h.p.pick(ctx, tlsTimeout, h.avoid)
	if c != nil {
		_ = c.Close()
		return nil, h2.Response{}, errSilent // the proxy no longer speaks HTTP/2
	}
	if err != nil {
		return nil, h2.Response{}, err
	}
	h.mu.Lock()
	h.asked[s] = true
	h.mu.Unlock()
	return s.Connect(ctx, h.r.authority, h.r.early, h.r.fields...)
}

func (h *hedge) avoid(s *h2.Session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked[s]
}

// suspect takes it that s, which keeps a request waiting while it serves so
// many streams, serves no more; and if it never has, that no session of this
// proxy does. undo is for when it turns out that the target was slow.
func (p *sessions) suspect(s *h2.Session, served int, record bool) (undo func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if served < 2 || p.limit > 0 && served >= p.limit {
		return func() {}
	}
	record = record && served >= h2LeastTold
	before := p.limit
	p.limited = time.Now()
	s.Limit(served)
	if record {
		p.limitLocked(served)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		s.Limit(before)
		if record && p.limit == served {
			p.limitLocked(before)
		}
	}
}

// limitLocked has every session take n streams at most, 0 for no such limit.
func (p *sessions) limitLocked(n int) {
	p.limit = n
	for _, s := range p.open {
		s.Limit(n)
	}
}
