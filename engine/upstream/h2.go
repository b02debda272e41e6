package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream/h2"
)

const (
	h2Attempts    = 6                     // of one flow, on sessions that did not process it
	h2RefusedWait = 20 * time.Millisecond // before the second attempt, doubled each time
	h2Sessions    = 1024                  // at most
	h2Recheck     = 50 * time.Millisecond // for a free place, when there are so many
)

// errSilent is inside the error of a connected proxy that did not answer.
var errSilent = errors.New("connected, but no answer in time")

// silence is what a check makes of no answer to a CONNECT: perhaps the target's.
func silence() *Error { return targetFault(flow.TimedOut, errSilent) }

// sessions are the HTTP/2 connections to one proxy. A flow goes to the oldest
// that has nothing much to do, so that idle ones can be closed, else to the
// least loaded. Another is dialled in the background before all are busy.
//
//	connect ─► pick ─┬─ place reserved ──► ask ─┬─► stream
//	     ▲           ├─ wait for a dial         ├─ no answer: ask another session too
//	     │           └─ h1: the connection is the caller's
//	     └──────────── not processed (GOAWAY, REFUSED_STREAM, session lost)
//	run ─► tend: close idle ones; keep one open and one spare ahead of need
type sessions struct {
	dial func(ctx context.Context, limit time.Duration) (c *tlsConn, isH2 bool, err error)

	mu      sync.Mutex
	open    []*h2.Session      // guarded by mu; oldest first
	dials   map[*dialing]bool  // guarded by mu; under way, or waiting for SETTINGS
	changed chan struct{}      // guarded by mu; closed when a dial has ended; nil if nobody waits
	waiting int                // guarded by mu; flows that have no place
	places  int                // guarded by mu; streams that the last session took, 0 if not known
	limit   int                // guarded by mu; streams that the proxy serves at once in a session, 0 if not known
	limited time.Time          // guarded by mu; when limit was found
	used    time.Time          // guarded by mu; by the last flow
	epoch   int                // guarded by mu; counts flushes
	retry   pause              // guarded by mu; after dials in the background that failed
	http1   bool               // guarded by mu; the last dial settled on HTTP/1.1
	closed  bool               // guarded by mu
	stop    context.CancelFunc // guarded by mu; ends run; nil before it starts
	wake    chan struct{}      // cap 1; guarded by mu until run starts
	wg      sync.WaitGroup     // run and dials
}

// patience is how long a connected proxy may take for each step.
type patience struct{ tls, connect time.Duration }

// tunnelRequest is what a session is asked for.
type tunnelRequest struct {
	authority string
	early     []byte
	alone     bool // no other session may be asked as long as this one may answer
	fields    []hpack.HeaderField
}

// connect gives a tunnel to a.t on which a.early has been sent, or a bare
// connection where the proxy speaks HTTP/1.1.
func (p *sessions) connect(ctx context.Context, a ask, limit patience) (flow.StreamConn, *tlsConn, error) {
	tr := traceOf(ctx)
	r := tunnelRequest{authority: a.t.String()}
	if auth := basicAuth(*a.spec); auth != "" {
		r.fields = []hpack.HeaderField{{Name: "proxy-authorization", Value: auth, Sensitive: true}}
	}
	var last error
	for try := range h2Attempts {
		session, c, err := p.pick(ctx, limit.tls, nil)
		if err != nil || c != nil {
			return nil, c, err
		}
		if a.alone() && !p.serves(session) {
			a.ahead = false
		}
		a.goAhead()
		if r.early, r.alone = nil, a.alone(); a.ahead {
			r.early = a.early
		}
		begin := time.Now()
		bounded, cancel := context.WithTimeoutCause(ctx, limit.connect, errSilent)
		st, answer, err := p.ask(bounded, session, r)
		cancel()
		tr.Connect = time.Since(begin)
		switch {
		case errors.Is(err, h2.ErrUnprocessed):
			last = err
			if session.Usable() { // so it refused the stream
				wait(ctx, h2RefusedWait<<try)
			}
			continue
		case errors.Is(err, syscall.ECONNRESET) && a.ahead: // perhaps because of that
			a.ahead, tr.refused, last = false, true, err
			continue
		case errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded):
			e := fault(Timeout, fmt.Errorf("CONNECT: %w", errSilent), "the proxy is overloaded")
			e.Silent = true
			return nil, nil, e
		case err != nil:
			return nil, nil, talkFault("CONNECT", err)
		case st == nil:
			return nil, nil, replyOf(answer).judge()
		}
		if tr.Early = a.ahead; !a.ahead && !a.late {
			if err := writeEarly(ctx, st, a.early); err != nil {
				return nil, nil, err
			}
		}
		return st, nil, nil
	}
	return nil, nil, fault(Refused, fmt.Errorf("CONNECT: %w", last), "the proxy takes no more streams: it may be overloaded or restarting")
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pick reserves a place in a session that is not to be avoided, or returns a new
// HTTP/1.1 connection. It fills in the trace.
func (p *sessions) pick(ctx context.Context, limit time.Duration, avoid func(*h2.Session) bool) (*h2.Session, *tlsConn, error) {
	tr, begin := traceOf(ctx), time.Now()
	var joined *dialing
	tr.Reused = true
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, nil, fault(Refused, fmt.Errorf("upstream: %w", net.ErrClosed), "")
		}
		p.used = begin
		p.startLocked()
		p.sweepLocked()
		if s := p.reserveLocked(avoid); s != nil {
			p.mu.Unlock()
			if joined != nil {
				tr.Wait += time.Since(begin)
			}
			return s, nil, nil
		}
		if joined != nil && joined.err != nil {
			p.mu.Unlock()
			return nil, nil, joined.err
		}
		if p.http1 || p.wantLocked() {
			d := p.dialLocked(limit, true)
			p.mu.Unlock()
			return p.own(ctx, d)
		}
		for d := range p.dials {
			joined = d
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed, full := p.changed, len(p.open) >= h2Sessions
		p.waiting++
		p.mu.Unlock()
		err := await(ctx, changed, full)
		p.mu.Lock()
		p.waiting--
		p.mu.Unlock()
		if err != nil {
			return nil, nil, err
		}
	}
}

// await waits for a dial to end, or for a while if only the end of streams can
// help.
func await(ctx context.Context, changed <-chan struct{}, full bool) error {
	var again <-chan time.Time
	if full {
		again = time.After(h2Recheck)
	}
	select {
	case <-changed:
	case <-again:
	case <-ctx.Done():
		return fault(Timeout, fmt.Errorf("wait for a session: %w", errSilent), "the proxy is overloaded")
	}
	return nil
}

// reserveLocked takes a place in the best session that has one.
func (p *sessions) reserveLocked(avoid func(*h2.Session) bool) *h2.Session {
	for {
		var best *h2.Session
		least := int64(0)
		for _, s := range p.open {
			if avoid != nil && avoid(s) || !s.Usable() {
				continue
			}
			l := s.Load()
			if l.Free <= 0 {
				continue
			}
			score := int64(l.Streams) + l.Rate>>17 // 128 KiB/s are as much as another stream
			if l.Congested {
				score += 1 << 40
			}
			if isLight(l) {
				score = -1
			}
			if best == nil || score < least {
				best, least = s, score
			}
			if score < 0 {
				break
			}
		}
		if least >= 0 {
			signalWake(p.wake) // a spare is due
		}
		if best == nil || best.Reserve() {
			return best
		}
	}
}

func signalWake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// flush has flows to come use new sessions, as after a change of network, of
// which one is made ahead if again is true. Open flows go on as long as theirs
// answer.
func (p *sessions) flush(again bool) {
	p.mu.Lock()
	for _, s := range p.open {
		s.Retire()
	}
	p.epoch++
	p.http1, p.limit, p.retry = false, 0, pause{}
	if !again {
		p.used = time.Time{}
	}
	signalWake(p.wake) // nil before run starts
	p.mu.Unlock()
}

// count is how many sessions flows can use.
func (p *sessions) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, s := range p.open {
		if s.Usable() {
			n++
		}
	}
	return n
}

func (p *sessions) close() {
	p.mu.Lock()
	p.closed = true
	open := p.open
	p.open = nil
	for d := range p.dials {
		d.cancel()
	}
	if p.stop != nil {
		p.stop()
	}
	p.mu.Unlock()
	for _, s := range open {
		_ = s.Close()
	}
	p.wg.Wait()
}

// replyOf reads an HTTP/2 answer as an HTTP/1.1 one is read.
func replyOf(a h2.Response) *reply {
	r := &reply{status: a.Status}
	for _, f := range a.Fields {
		r.field(f.Name, f.Value)
	}
	return r
}
