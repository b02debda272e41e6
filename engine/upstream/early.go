package upstream

import (
	"bytes"
	"context"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Verdict is what is known about a proxy and early data: the client's first
// bytes in the same write as the request for the tunnel, before the answer.
type Verdict uint8

const (
	EarlyUnknown Verdict = iota // nothing is known yet
	EarlyCarries                // it was seen to carry them
	EarlyRefuses                // it loses them or hangs up: plain order only
)

func (v Verdict) String() string {
	switch v {
	case EarlyCarries:
		return "carries"
	case EarlyRefuses:
		return "refuses"
	}
	return "unknown"
}

// Early is the verdict now; a group's is that of the gateway that carried its
// last flow.
func (u *Upstream) Early() Verdict {
	if u.group != nil {
		if m := u.group.last.Load(); m != nil {
			return m.Early()
		}
	}
	if u.prover == nil {
		return EarlyUnknown
	}
	return Verdict(u.prover.verdict.Load())
}

// EarlyAt is the verdict on one gateway of a group, by its scheme and host:port,
// and how many connections to it wait. EarlyUnknown and 0 of one that was never
// dialled.
func (u *Upstream) EarlyAt(scheme, addr string) (v Verdict, warm int) {
	if u.group == nil {
		return EarlyUnknown, 0
	}
	return u.group.members.verdict(scheme, addr)
}

// SetEarly gives the verdict that an earlier run came to; where early data is
// off it changes nothing. Options.EarlyChanged is not called.
func (u *Upstream) SetEarly(v Verdict) {
	if u.prover == nil || u.prover.off {
		return
	}
	if v == EarlyRefuses {
		u.prover.notYet.Store(time.Now().Add(firstRefusal).UnixNano())
	}
	u.prover.verdict.Store(uint32(v))
}

// WantsEarly says that a flow to t gains by handing its client's first bytes
// to DialStream, so that the client is to be accepted before the upstream has
// answered: the upstream carries them, or this flow may find out. While the
// upstream fails it does not, so that clients are refused. It takes no lock.
func (u *Upstream) WantsEarly(t flow.Target) bool {
	p := u.prover
	if u.group != nil {
		if m := u.group.last.Load(); m != nil {
			p = m.prover
		}
	}
	if p == nil || t.Name == "" && t.Addr.Is6() {
		return false // a refusal has to reach the client as one (RFC 8305)
	}
	if u.Early() != EarlyCarries && !u.stats.worked.Load() {
		return false // where nothing works there is nothing to find out
	}
	return u.stats.failures.Load() == 0 && p.wants()
}

// SafeToRepeat says that b, the first bytes of a client, may reach a server
// twice without harm: a TLS ClientHello with nothing after it, or the whole
// head of an HTTP GET, HEAD or OPTIONS request without content (RFC 9110
// section 9.2.1). Only such bytes ever leave before a proxy has answered.
func SafeToRepeat(b []byte) bool {
	if len(b) >= 6 && b[0] == tlsHandshake {
		return onlyHello(b)
	}
	for _, method := range [...]string{"GET ", "HEAD ", "OPTIONS "} {
		if bytes.HasPrefix(b, []byte(method)) {
			return headEnd(b, 0) == len(b) && !announcesContent(b)
		}
	}
	return false
}

// The numbers of RFC 8446 sections 4 and 5.1.
const (
	tlsAlert       = 21
	tlsHandshake   = 22
	tlsClientHello = 1
	tlsServerHello = 2
	tlsHeaderBytes = 5
)

// onlyHello says that b is a ClientHello or the beginning of one: data after
// it may be a request already (0-RTT, RFC 8446 section 8).
func onlyHello(b []byte) bool {
	if b[1] != 3 || b[tlsHeaderBytes] != tlsClientHello {
		return false
	}
	for len(b) > 0 {
		if b[0] != tlsHandshake {
			return false
		}
		if len(b) < tlsHeaderBytes {
			return true
		}
		n := tlsHeaderBytes + int(b[3])<<8 + int(b[4])
		b = b[min(n, len(b)):]
	}
	return true
}

// announcesContent says that a request has a body, or seems to.
func announcesContent(head []byte) bool {
	for len(head) > 0 {
		var line []byte
		line, head, _ = bytes.Cut(head, []byte("\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		name = bytes.TrimSpace(name)
		if bytes.EqualFold(name, []byte("Transfer-Encoding")) ||
			bytes.EqualFold(name, []byte("Content-Length")) && string(bytes.TrimSpace(value)) != "0" {
			return true
		}
	}
	return false
}

type appKey struct{}

// WithApp names the program that a flow belongs to, for policies that keep a
// program on one exit.
func WithApp(ctx context.Context, app string) context.Context {
	if app == "" {
		return ctx
	}
	return context.WithValue(ctx, appKey{}, app)
}

func appOf(ctx context.Context) string {
	app, _ := ctx.Value(appKey{}).(string)
	return app
}
