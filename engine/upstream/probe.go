package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	auditEvery   = 64               // early flows, of which one is watched again
	maxDisproved = 3                // watched flows in a row that contradict what was seen to work
	firstPause   = time.Second      // before another try where one told nothing, doubling …
	lastPause    = 5 * time.Minute  // … up to this
	firstRefusal = 10 * time.Minute // that a proxy which does not carry them is left alone, doubling …
	lastRefusal  = 6 * time.Hour    // … up to this
)

// prover holds what is known about a proxy and early data, and finds it out on
// flows whose first bytes are safe to send twice.
//
//	Unknown ─ a flow proves it: ServerHello, HTTP answer ─► Carries ─ 1 in 64 is watched
//	   ▲  └── lost, while the plain order works ─► Refuses     │
//	   └───────────────── after minutes to hours ────┘         │
//	   └───────────────── 3 in a row that contradict it ───────┘
type prover struct {
	changed func() // told of a new verdict; may be nil
	off     bool   // never
	verdict atomic.Uint32
	proving atomic.Bool   // by a flow, now
	notYet  atomic.Int64  // Unix ns: no proof before
	proven  atomic.Int64  // bytes that were carried
	doubt   atomic.Bool   // the next flow is watched
	flows   atomic.Uint64 // early ones

	mu        sync.Mutex
	disproved int           // guarded by mu; in a row
	pause     time.Duration // guarded by mu
	refusal   time.Duration // guarded by mu
}

// wants says that a flow may send early.
func (p *prover) wants() bool {
	if p.off {
		return false
	}
	if Verdict(p.verdict.Load()) == EarlyCarries {
		return true
	}
	return !p.proving.Load() && time.Now().UnixNano() >= p.notYet.Load()
}

// order is how a flow sends its first bytes.
type order uint8

const (
	plain   order = iota // after the proxy's answer
	ahead                // with the request
	proving              // ahead, and watched; proved or another end of it must be called
)

// choose takes part in the game for a flow with these first bytes.
func (p *prover) choose(early []byte) order {
	if len(early) == 0 || !p.wants() || !SafeToRepeat(early) {
		return plain
	}
	carries := Verdict(p.verdict.Load()) == EarlyCarries
	if carries && p.flows.Add(1)%auditEvery != 0 && int64(len(early)) <= p.proven.Load() && !p.doubt.Load() {
		return ahead
	}
	if p.proving.CompareAndSwap(false, true) {
		return proving
	}
	if carries {
		return ahead
	}
	return plain
}

// set changes the verdict and tells.
func (p *prover) set(v Verdict) {
	if old := p.verdict.Swap(uint32(v)); old != uint32(v) && p.changed != nil {
		p.changed()
	}
}

// carried notes that the proxy has carried so many bytes.
func (p *prover) carried(bytes int) {
	p.mu.Lock()
	p.disproved, p.pause, p.refusal = 0, 0, 0
	p.mu.Unlock()
	p.proven.Store(max(p.proven.Load(), int64(bytes)))
	p.doubt.Store(false)
	p.set(EarlyCarries)
}

// lost notes that early bytes were not answered where later ones were.
func (p *prover) lost() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if Verdict(p.verdict.Load()) == EarlyCarries {
		p.doubt.Store(true)
		p.proven.Store(0)
		if p.disproved++; p.disproved >= maxDisproved {
			p.disproved = 0
			p.waitLocked()
			p.set(EarlyUnknown)
		}
		return
	}
	p.refusal = min(max(2*p.refusal, firstRefusal), lastRefusal)
	p.notYet.Store(time.Now().Add(p.refusal).UnixNano())
	p.set(EarlyRefuses)
}

// unclear notes that a proof told nothing.
func (p *prover) unclear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if Verdict(p.verdict.Load()) != EarlyCarries {
		p.waitLocked()
	}
}

func (p *prover) waitLocked() {
	p.pause = min(max(2*p.pause, firstPause), lastPause)
	p.notYet.Store(time.Now().Add(p.pause).UnixNano())
}

// The answers that a watched flow can have.
type sign uint8

const (
	silent  sign = iota // nothing within the time
	ended               // closed without a byte
	proof               // only a server that got the first bytes says this
	garbled             // 400, 408 or an alert: they may have arrived in part
	other               // anything else: another protocol
)

// signOf reads the first bytes of an answer.
func signOf(b []byte) sign {
	switch {
	case len(b) > tlsHeaderBytes && b[0] == tlsHandshake && b[tlsHeaderBytes] == tlsServerHello,
		0 < len(b) && len(b) <= tlsHeaderBytes && b[0] == tlsHandshake:
		return proof
	case len(b) > 0 && b[0] == tlsAlert:
		return garbled
	case !bytes.HasPrefix(b, []byte("HTTP/1.")) || len(b) < len("HTTP/1.1 200"):
		return other
	}
	if status := string(b[9:12]); status == "400" || status == "408" {
		return garbled
	}
	return proof
}

// watch waits for the first bytes of the answer on c. The connection that it
// returns still holds them.
func watch(ctx context.Context, c flow.StreamConn, limit time.Duration) (flow.StreamConn, sign) {
	g := guardConn(ctx, c, limit)
	var b [16]byte
	n, err := 0, error(nil)
	if tcp, ok := c.(*net.TCPConn); ok && canPeek {
		if n, err = newPeeker(tcp).peek(b[:]); n == 0 && err == nil {
			err = io.EOF
		}
	} else if n, err = c.Read(b[:]); n > 0 {
		c = &unread{StreamConn: c, head: bytes.Clone(b[:n])}
	}
	g.release()
	switch {
	case n > 0:
		return c, signOf(b[:n])
	case isTimeout(err):
		return c, silent
	}
	return c, ended
}

// unread is a connection with bytes that were read and given back.
type unread struct {
	flow.StreamConn
	head []byte // of one reader at a time
}

func (c *unread) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.StreamConn.Read(b)
	}
	n := copy(b, c.head)
	c.head = c.head[n:]
	return n, nil
}

// SetLinger is that of the connection below, where it has one.
func (c *unread) SetLinger(sec int) error {
	if l, ok := c.StreamConn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return errors.ErrUnsupported
}

// prove dials with early ahead and watches what comes of it. The flow never
// notices: where the answer is not what it should be, a second dial is made in
// the plain order beside it, and the first true answer is the flow's.
func (u *Upstream) prove(ctx context.Context, a ask) (flow.StreamConn, error) {
	p := u.prover
	defer p.proving.Store(false)
	a.ahead = true
	c, err := u.streams.open(ctx, a)
	if err != nil {
		p.unclear()
		return nil, err
	}
	tr := traceOf(ctx)
	if !tr.Early {
		if tr.refused {
			p.lost()
		}
		return c, nil
	}
	c, sign := watch(ctx, c, earlySilence)
	switch sign {
	case proof:
		p.carried(len(a.early))
		return c, nil
	case other: // it speaks, at least
		p.unclear()
		return c, nil
	}
	return u.compare(ctx, c, sign, a)
}

const (
	earlySilence = time.Second     // on a watched flow, after which it is compared with a plain one
	plainSilence = 5 * time.Second // on both, after which the plain one is the flow's
)

// watched is a stream that was watched.
type watched struct {
	c    flow.StreamConn // nil if it could not be opened
	sign sign
	err  error
}

// compare opens a second stream in the plain order and lets both go on; first
// is the early one, as far as it has come.
func (u *Upstream) compare(ctx context.Context, c flow.StreamConn, first sign, a ask) (flow.StreamConn, error) {
	p := u.prover
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tr Trace
	late := make(chan watched, 1)
	go func() {
		a.ahead = false
		d, err := u.streams.open(WithTrace(ctx, &tr), a)
		w := watched{c: d, err: err}
		if err == nil {
			w.c, w.sign = watch(ctx, d, plainSilence)
		}
		late <- w
	}()
	early := make(chan watched, 1)
	if first == silent {
		go func() {
			c, s := watch(ctx, c, plainSilence)
			early <- watched{c: c, sign: s}
		}()
	} else {
		early <- watched{c: c, sign: first}
	}
	var e, l watched
	select {
	case e = <-early:
		if e.sign == proof { // it was only slow
			cancel()
			if l = <-late; l.c != nil {
				_ = l.c.Close()
			}
			p.carried(len(a.early))
			return e.c, nil
		}
		l = <-late
	case l = <-late:
		if l.sign != silent {
			cancel()
		}
		e = <-early
	}
	return u.verdictOf(ctx, e, l, &tr)
}

// verdictOf chooses between two streams of which the early one gave no proof.
func (u *Upstream) verdictOf(ctx context.Context, e, l watched, tr *Trace) (flow.StreamConn, error) {
	p := u.prover
	switch {
	case l.err != nil && (e.sign == ended || ctx.Err() != nil):
		_ = e.c.Close()
		p.unclear()
		return nil, l.err
	case l.err != nil, e.sign == proof && l.sign != proof:
		if l.c != nil {
			_ = l.c.Close()
		}
		p.unclear()
		return e.c, nil
	case l.sign == proof, l.sign != silent && l.sign != ended && (e.sign == silent || e.sign == ended):
		p.lost()
	default:
		p.unclear()
	}
	_ = e.c.Close()
	mine := traceOf(ctx)
	mine.Dial, mine.TLS, mine.Connect = mine.Dial+tr.Dial, mine.TLS+tr.TLS, mine.Connect+tr.Connect
	mine.Early, mine.Warm, mine.Reused = false, tr.Warm, tr.Reused
	return l.c, nil
}
