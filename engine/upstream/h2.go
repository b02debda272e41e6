package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream/h2"
)

const (
	h2Attempts  = 4           // of one flow, on sessions that did not process it
	h2IdleExtra = time.Minute // after which a second idle session is closed
)

// errSilent is inside the error of a connected proxy that did not answer.
var errSilent = errors.New("connected, but no answer in time")

// sessions are the HTTP/2 connections to one proxy. Flows share the first
// that has a free place; one more is dialled when none has, once for all who
// wait.
//
//	connect ─► pick ─┬─ place reserved ─────────────► CONNECT ─┬─► stream
//	     ▲           ├─ some session has no SETTINGS yet: wait │
//	     │           └─ dial; h1: the connection is the caller's
//	     └──────────────── not processed (GOAWAY, REFUSED_STREAM, session lost)
type sessions struct {
	dial func(ctx context.Context, limit time.Duration) (c *tlsConn, isH2 bool, err error)

	mu      sync.Mutex
	open    []*h2.Session // guarded by mu
	dialing chan struct{} // guarded by mu; closed when the dial under way has ended, nil if there is none
	http1   bool          // guarded by mu; the last dial settled on HTTP/1.1
	closed  bool          // guarded by mu
}

// patience is how long a connected proxy may take for each step.
type patience struct{ tls, connect time.Duration }

// connect gives a tunnel to t, or a bare connection where the proxy speaks
// HTTP/1.1.
func (p *sessions) connect(ctx context.Context, s Spec, t flow.Target, limit patience) (flow.StreamConn, *tlsConn, error) {
	tr := traceOf(ctx)
	var fields []hpack.HeaderField
	if a := basicAuth(s); a != "" {
		fields = []hpack.HeaderField{{Name: "proxy-authorization", Value: a, Sensitive: true}}
	}
	var last error
	for range h2Attempts {
		session, c, reused, err := p.pick(ctx, limit.tls)
		if err != nil || c != nil {
			return nil, c, err
		}
		tr.Reused = reused
		begin := time.Now()
		bounded, cancel := context.WithTimeoutCause(ctx, limit.connect, errSilent)
		st, answer, err := session.Connect(bounded, t.String(), fields...)
		cancel()
		tr.Connect = time.Since(begin)
		switch {
		case errors.Is(err, h2.ErrUnprocessed):
			last = err
			continue
		case errors.Is(err, errSilent), errors.Is(err, context.DeadlineExceeded):
			return nil, nil, fault(Timeout, fmt.Errorf("CONNECT: %w", errSilent), "the proxy is overloaded")
		case err != nil:
			return nil, nil, talkFault("CONNECT", err)
		case st == nil:
			return nil, nil, replyOf(answer).judge()
		}
		return st, nil, nil
	}
	return nil, nil, fault(Refused, fmt.Errorf("CONNECT: %w", last), "the proxy takes no more streams: it may be overloaded or restarting")
}

// pick reserves a place in a session, or returns a new HTTP/1.1 connection.
func (p *sessions) pick(ctx context.Context, limit time.Duration) (s *h2.Session, c *tlsConn, reused bool, err error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, nil, false, fault(Refused, fmt.Errorf("upstream: %w", net.ErrClosed), "")
		}
		p.sweepLocked()
		for _, s := range p.open {
			if s.Reserve() {
				p.mu.Unlock()
				return s, nil, true, nil
			}
		}
		if p.http1 {
			p.mu.Unlock()
			return p.grow(ctx, limit)
		}
		wait, unready := p.dialing, p.unreadyLocked()
		if wait == nil && unready == nil {
			p.dialing = make(chan struct{})
			p.mu.Unlock()
			return p.growAlone(ctx, limit)
		}
		p.mu.Unlock()
		if err := await(ctx, wait, unready); err != nil {
			return nil, nil, false, err
		}
	}
}

// await waits for the dial under way, or for a new session's SETTINGS.
func await(ctx context.Context, dialing <-chan struct{}, unready *h2.Session) error {
	var ready, done <-chan struct{}
	if unready != nil {
		ready, done = unready.Ready(), unready.Done()
	}
	select {
	case <-dialing:
	case <-ready:
	case <-done:
	case <-ctx.Done():
		return fault(Timeout, fmt.Errorf("wait for a session: %w", errSilent), "the proxy is overloaded")
	}
	return nil
}

// growAlone dials while others wait for the result.
func (p *sessions) growAlone(ctx context.Context, limit time.Duration) (*h2.Session, *tlsConn, bool, error) {
	defer func() {
		p.mu.Lock()
		close(p.dialing)
		p.dialing = nil
		p.mu.Unlock()
	}()
	return p.grow(ctx, limit)
}

// grow dials, and adds a session if the proxy speaks HTTP/2.
func (p *sessions) grow(ctx context.Context, limit time.Duration) (*h2.Session, *tlsConn, bool, error) {
	c, isH2, err := p.dial(ctx, limit)
	if err != nil {
		return nil, nil, false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.http1 = !isH2
	if !isH2 {
		return nil, c, false, nil
	}
	if p.closed {
		c.Close()
		return nil, nil, false, fault(Refused, fmt.Errorf("upstream: %w", net.ErrClosed), "")
	}
	s := h2.New(c)
	s.Reserve() // a new session has a place, or its end shows in Connect
	p.open = append(p.open, s)
	return s, nil, false, nil
}

func (p *sessions) unreadyLocked() *h2.Session {
	for _, s := range p.open {
		select {
		case <-s.Ready():
		default:
			if s.Usable() {
				return s
			}
		}
	}
	return nil
}

// sweepLocked forgets ended sessions, and closes idle ones beyond the first.
// A session that drains stays until its streams have ended.
func (p *sessions) sweepLocked() {
	kept := p.open[:0]
	for i, s := range p.open {
		select {
		case <-s.Done():
			_ = s.Close() // waits for its goroutines, which are ending
			continue
		default:
		}
		if i > 0 && s.Idle() > h2IdleExtra {
			_ = s.Close()
			continue
		}
		kept = append(kept, s)
	}
	clear(p.open[len(kept):])
	p.open = kept
}

func (p *sessions) close() {
	p.mu.Lock()
	p.closed = true
	open := p.open
	p.open = nil
	p.mu.Unlock()
	for _, s := range open {
		_ = s.Close()
	}
}

// replyOf reads an HTTP/2 answer as an HTTP/1.1 one is read.
func replyOf(a h2.Response) *reply {
	r := &reply{status: a.Status}
	for _, f := range a.Fields {
		r.field(f.Name, f.Value)
	}
	return r
}
