package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// line makes tunnels of pooled connections, one each: what HTTP/1.1 CONNECT
// and SOCKS5 have in common once a connection is ready.
//
//	take ─► send: request [+ early] ─► reply ─► [early] ─► tunnel
//	 ▲        │                         │
//	 │        └── it had died ──────────┤ not a byte of an answer: nothing has
//	 └──────────────────────────────────┤ happened, so the next one is tried
//	   new connection beside it ◄───────┘ silent: the first answer of two counts
type line struct {
	pool    *pool
	what    string // in errors
	request func(b []byte, a *ask) []byte
	reply   func(*answer) error // reads one to the byte
	pace    pace
	bufs    sync.Pool // *[lineBufBytes]byte
}

// lineBufBytes has room for a request and the first bytes of most clients.
const lineBufBytes = 8 << 10

const pooledTries = 2 // of idle connections; then a new one is dialled

// ask is what a tunnel is wanted for.
type ask struct {
	spec  *Spec // whose credentials the request holds
	t     flow.Target
	early []byte
	ahead bool  // early leaves with the request
	late  bool  // else the caller sends it, not who opens the tunnel
	once  *once // to be taken before early leaves ahead; nil: it is the caller's
}

// goAhead takes what a needs to send early ahead, or gives that up.
func (a *ask) goAhead() {
	if !a.ahead || a.once == nil {
		return
	}
	if a.ahead = a.once.take(); a.ahead {
		a.once = nil
	}
}

// alone says that nothing else may be tried as long as this may succeed.
func (a *ask) alone() bool { return a.ahead && repeatOf(a.early) != always }

// tunnel gives a connection to a.t on which a.early has been sent. Whether it
// left with the request is in the trace: at the last it does not. w is a
// connection to begin with, nil for one of the pool.
func (l *line) tunnel(ctx context.Context, w *warm, a ask) (flow.StreamConn, error) {
	k, err := l.talk(ctx, w, a)
	if err != nil {
		return nil, err
	}
	if !k.a.ahead && !a.late { // only now: of two talks, one is chosen
		if err := writeEarly(ctx, k.w.conn, a.early); err != nil {
			return nil, err
		}
	}
	return k.w.conn, nil
}

// talk is tunnel for those who want to know the answer as well.
func (l *line) talk(ctx context.Context, w *warm, a ask) (*talk, error) {
	tr, begin := traceOf(ctx), time.Now()
	var died *talk // the last that had
	for try := 0; ; try++ {
		if w == nil {
			var err error
			if w, err = l.pool.take(ctx, try >= pooledTries); err != nil {
				return nil, err
			}
		}
		a.goAhead()
		k, err := l.try(ctx, w, a)
		k.note(tr, time.Since(begin))
		w = nil
		switch {
		case err == nil:
			if died != nil && !k.w.pooled {
				l.pool.lost(died.w.age, false)
			}
			return k, nil
		case ctx.Err() != nil:
			return nil, talkFault(l.what, err)
		case k.w.pooled && !k.answered() && !isTimeout(err):
			died = k
		case a.ahead && maybeOrder(k, err):
			a.ahead, tr.refused = false, true
			try = pooledTries
		default:
			return nil, talkFault(l.what, err)
		}
	}
}

// maybeOrder says that a failure may be due to early bytes before the answer.
func maybeOrder(k *talk, err error) bool {
	var e *Error
	return !k.answered() && !isTimeout(err) || errors.As(err, &e) && e.Kind == Protocol
}

// errUnheard is why a connection is given up that was idle.
var errUnheard = errors.New("the proxy's system has not acknowledged the request")

// try makes the request on w. If w was idle and keeps silent for longer than
// this proxy does, it makes it on a new connection too; but where that would
// repeat what must not be, w is given up if it is dead, or waited for. The talk
// is the one that ended it; on error its connection is closed.
func (l *line) try(ctx context.Context, w *warm, a ask) (*talk, error) {
	k := l.begin(ctx, w, a)
	limit := handshakeTimeout
	if w.pooled {
		limit = l.pace.patience()
	}
	err := k.send()
	if err == nil {
		err = k.await(limit)
	}
	if err != nil && w.pooled && !k.answered() && isTimeout(err) && ctx.Err() == nil {
		switch {
		case !a.alone():
			return l.second(ctx, k, a)
		case unacknowledged(w.tcp):
			err = errUnheard
		default:
			err = k.await(handshakeTimeout)
		}
	}
	return k, k.end(err)
}

// second makes the request again, on a new connection and in the plain order,
// while first goes on waiting.
func (l *line) second(ctx context.Context, first *talk, a ask) (*talk, error) {
	type result struct {
		k   *talk
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, 2)
	go func() { results <- result{first, first.end(first.await(handshakeTimeout))} }()
	begin := time.Now()
	go func() {
		w, err := l.pool.take(ctx, true)
		if err != nil {
			results <- result{nil, err}
			return
		}
		a.ahead = false
		k := l.begin(ctx, w, a)
		if err = k.send(); err == nil {
			err = k.await(handshakeTimeout)
		}
		results <- result{k, k.end(err)}
	}()
	r := <-results
	if r.err != nil && (r.k == nil || !r.k.answered()) {
		other := <-results // says more
		if other.k == nil {
			other.k = first
		}
		return other.k, other.err
	}
	cancel()
	if r.k != first {
		first.w.abort()
		// A slow target would be as slow on both.
		if silent := time.Since(first.sent); r.err == nil && silent > 2*time.Since(begin) {
			l.pool.lost(first.w.age, true)
		}
	}
	if loser := <-results; loser.err == nil {
		loser.k.w.abort()
	}
	return r.k, r.err
}

// talk is one request on one connection.
type talk struct {
	line *line
	w    *warm
	a    ask
	g    *guard
	in   answer
	sent time.Time
	took time.Duration // until the answer
}

func (l *line) begin(ctx context.Context, w *warm, a ask) *talk {
	k := &talk{line: l, w: w, a: a, g: guardConn(ctx, w.conn, handshakeTimeout), sent: time.Now()}
	k.in = answer{w: w, g: k.g, full: deadlineOf(ctx, handshakeTimeout)}
	return k
}

// send writes the request, in one piece with what leaves ahead.
func (k *talk) send() error {
	buf, _ := k.line.bufs.Get().(*[lineBufBytes]byte)
	if buf == nil {
		buf = new([lineBufBytes]byte)
	}
	defer k.line.bufs.Put(buf)
	b := k.line.request(buf[:0], &k.a)
	if k.a.ahead {
		b = append(b, k.a.early...)
	}
	_, err := k.w.conn.Write(b)
	return err
}

// await reads the answer, of which the first byte has to come within limit. It
// may be called again after a timeout without an answer.
func (k *talk) await(limit time.Duration) error {
	k.in.expect(limit)
	err := k.line.reply(&k.in)
	if err != nil {
		return err
	}
	k.took = time.Since(k.sent)
	k.line.pace.add(k.took)
	return nil
}

// answered says that the proxy has said something.
func (k *talk) answered() bool { return k.in.got }

// end hands the connection over, or closes it.
func (k *talk) end(err error) error {
	if whole := k.g.release(); err == nil && !whole {
		err = context.Canceled
	}
	if err != nil {
		k.took = time.Since(k.sent)
		k.w.abort()
	}
	return err
}

// note writes a trace: what does not belong to k's own steps was waiting.
func (k *talk) note(tr *Trace, total time.Duration) {
	tr.Dial, tr.TLS, tr.Connect = 0, 0, 0
	k.w.note(tr)
	tr.Connect += k.took
	tr.Wait = max(total-tr.Dial-tr.TLS-tr.Connect, 0)
	tr.Early = k.a.ahead && len(k.a.early) > 0
}

// answer is what a proxy says to a request.
type answer struct {
	w    *warm
	g    *guard
	full time.Time // when it has to be complete
	wait bool      // the first byte has less time
	got  bool      // a byte was seen

	bound flow.Target // the address in a SOCKS5 reply
}

func (a *answer) expect(limit time.Duration) {
	if by := time.Now().Add(limit); !a.got && by.Before(a.full) {
		a.wait = true
		a.g.readBy(by)
	} else if a.wait {
		a.wait = false
		a.g.readBy(a.full)
	}
}

// seen notes that the answer has begun.
func (a *answer) seen(n int) {
	if n == 0 || a.got {
		return
	}
	a.got = true
	if a.wait {
		a.wait = false
		a.g.readBy(a.full)
	}
}

func (a *answer) Read(b []byte) (int, error) {
	n, err := a.w.conn.Read(b)
	a.seen(n)
	return n, err
}

// canPeek says whether peek can be used.
func (a *answer) canPeek() bool {
	_, plain := a.w.conn.(*net.TCPConn)
	return canPeek && plain && a.w.eyes != nil
}

// peek is peeker.peek, where the end is io.EOF.
func (a *answer) peek(b []byte) (int, error) {
	n, err := a.w.eyes.peek(b)
	if err == nil && n == 0 {
		err = io.EOF
	}
	a.seen(n)
	return n, err
}

// source is where a reply is read from.
type source interface {
	io.Reader
	canPeek() bool
	peek(b []byte) (int, error)
}

var _ source = (*answer)(nil)
