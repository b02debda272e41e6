package upstream

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	auditEvery   = 64               // early flows, beside one of which the proxy is asked again
	maxDisproved = 3                // probes in a row that contradict what was seen to work
	firstPause   = time.Second      // before another try where one told nothing, doubling …
	lastPause    = 5 * time.Minute  // … up to this
	firstRefusal = 10 * time.Minute // that a proxy which does not carry them is left alone, doubling …
	lastRefusal  = 6 * time.Hour    // … up to this

	earlySilence  = time.Second     // of a probe's bytes that went ahead, after which they are sent in the plain order too
	answerSilence = 6 * time.Second // after which an answer to either is not waited for any more
	questionBytes = 512             // of what is asked of a web server, at least; more only in steps of double
	believedBytes = 4 << 10         // that a proxy is taken to carry which did in an earlier run
)

// prover holds what is known about a proxy and early data, and finds it out by
// tunnels of its own beside flows, to where these go: never with a request of
// an app, which a proxy could lose or a slow answer have repeated.
//
//	Unknown ─ a probe's bytes are answered ─► Carries ─ asked again beside 1 flow in 64
//	   ▲  └── lost, while the plain order works ─► Refuses     │
//	   └───────────────── after minutes to hours ────┘         │
//	   └───────────────── 3 in a row that contradict it ───────┘
type prover struct {
	changed func() // told of a new verdict; may be nil
	off     bool   // never
	verdict atomic.Uint32
	probing atomic.Bool   // now
	notYet  atomic.Int64  // Unix ns: no probe before
	proven  atomic.Int64  // bytes that were carried
	doubt   atomic.Bool   // the next flow has the proxy asked again
	flows   atomic.Uint64 // early ones

	mu        sync.Mutex
	disproved int                // guarded by mu; in a row
	pause     time.Duration      // guarded by mu
	refusal   time.Duration      // guarded by mu
	cancel    context.CancelFunc // guarded by mu; ends the probe under way, nil before the first
	closed    bool               // guarded by mu
	work      sync.WaitGroup     // the probe
}

// wants says that a flow may send early, or that the proxy is to be asked
// beside it.
func (p *prover) wants() bool {
	if p.off {
		return false
	}
	if Verdict(p.verdict.Load()) == EarlyCarries {
		return true
	}
	return !p.probing.Load() && time.Now().UnixNano() >= p.notYet.Load()
}

// choose says whether a flow's first bytes leave ahead, and whether the proxy
// is to be asked once the flow has its tunnel; then spawn or fail must
// follow.
func (p *prover) choose(early []byte) (ahead, probe bool) {
	if len(early) == 0 || !p.wants() || repeatOf(early) == never {
		return false, false
	}
	ahead = Verdict(p.verdict.Load()) == EarlyCarries && int64(len(early)) <= p.proven.Load()
	due := !ahead || p.flows.Add(1)%auditEvery == 0 || p.doubt.Load()
	return ahead, due && p.probing.CompareAndSwap(false, true)
}

// believe takes over the verdict of an earlier run, and doubts it.
func (p *prover) believe(v Verdict) {
	switch v {
	case EarlyRefuses:
		p.notYet.Store(time.Now().Add(firstRefusal).UnixNano())
	case EarlyCarries:
		p.proven.Store(believedBytes)
		p.doubt.Store(true)
	}
	p.verdict.Store(uint32(v))
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

// fail ends what choose has begun: the flow has no tunnel.
func (p *prover) fail() {
	p.unclear()
	p.probing.Store(false)
}

// unclear notes that a probe told nothing.
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

// The answers that a probe can have.
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

// hear waits for the first bytes that c's other end says, and closes c.
func hear(ctx context.Context, c net.Conn) sign {
	g := guardConn(ctx, c, answerSilence)
	var b [16]byte
	n, err := io.ReadAtLeast(c, b[:], len("HTTP/1.1 200"))
	g.release()
	_ = c.Close()
	switch {
	case n > 0:
		return signOf(b[:n])
	case isTimeout(err):
		return silent
	}
	return ended
}

// spawn asks the proxy beside a flow, which a describes; then it calls done.
func (p *prover) spawn(streams protocol, a ask, done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		done()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), setupTimeout)
	p.cancel = cancel
	a = ask{spec: a.spec, t: a.t, early: question(a)}
	p.work.Go(func() {
		defer done()
		defer p.probing.Store(false)
		defer cancel()
		p.probe(ctx, streams, a)
	})
}

// close ends a probe under way and waits for it. It is idempotent.
func (p *prover) close() {
	p.mu.Lock()
	p.closed = true
	if p.cancel != nil {
		p.cancel()
	}
	p.mu.Unlock()
	p.work.Wait()
}

// probe asks in both orders, the early one first.
func (p *prover) probe(ctx context.Context, streams protocol, a ask) {
	var tr Trace
	a.ahead = true
	c, err := streams.open(WithTrace(ctx, &tr), a)
	switch {
	case err != nil:
		p.unclear()
		return
	case !tr.Early:
		_ = c.Close()
		if tr.refused {
			p.lost()
		} else {
			p.unclear()
		}
		return
	}
	heard := make(chan sign, 1)
	listening, stop := context.WithCancel(ctx)
	defer stop()
	go func() { heard <- hear(listening, c) }() // waited for below
	timer := time.NewTimer(earlySilence)
	defer timer.Stop()
	select {
	case early := <-heard:
		if early == proof {
			p.carried(len(a.early))
			return
		}
		heard <- early
	case <-timer.C:
	}
	a.ahead = false
	late := ended
	if second, err := streams.open(WithTrace(ctx, new(Trace)), a); err == nil {
		late = hear(ctx, second)
	}
	stop() // a server that is only slow would have answered the first by now
	p.judge(<-heard, late, len(a.early))
}

// judge compares what was answered to the same bytes in both orders.
func (p *prover) judge(early, late sign, bytes int) {
	switch {
	case early == proof,
		early == garbled && late == garbled: // the server would not have them in either order
		p.carried(bytes)
	case late == proof,
		late == garbled && early != other,
		late == other && (early == silent || early == ended):
		p.lost()
	default:
		p.unclear()
	}
}

// question is what a server answers at once and that does nothing, no shorter
// than a.early: a TLS greeting is one, and OPTIONS * is meant as one (RFC 9110
// section 9.3.7).
func question(a ask) []byte {
	if repeatOf(a.early) == always {
		return a.early
	}
	var b bytes.Buffer
	b.WriteString("OPTIONS * HTTP/1.1\r\nHost: " + a.t.Host() + "\r\nConnection: close\r\n")
	want := questionBytes
	for want < len(a.early) {
		want *= 2
	}
	// In short lines: lean servers have small buffers.
	const end = "\r\n"
	for b.Len()+len(end) < want {
		b.WriteString("X-Padding: " + strings.Repeat("x", 64) + end)
	}
	b.WriteString(end)
	return b.Bytes()
}
