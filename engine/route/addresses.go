package route

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// An app that has a fake address cannot try another one, as browsers do within
// 300 ms where the first address of a name is dead (RFC 8305); and many proxies
// try one address alone. So the other addresses are tried from here, by address,
// through the same upstream:
//
//	name ──┬─ answered ──────────────────────────────► that
//	       ├─ refused for the target ──► addresses ──► the first that answers, or the refusal
//	       └─ 2 s of silence ──► addresses beside it ► whichever answers first
const (
	addressDelay = 2 * time.Second        // of silence for the name
	addressLimit = 5 * time.Second        // for all addresses, and their lookup through the upstream
	nextAddress  = 250 * time.Millisecond // between two of them (RFC 8305 section 5)
	maxAddresses = 16                     // tried of one name
)

// dialled is a connection, or why there is none, and how it was made.
type dialled struct {
	c   flow.StreamConn
	tr  *upstream.Trace
	err error
}

// dialTarget dials the flow's target: a name as such, and by its addresses if
// the upstream fails for the name.
func (h *Handler) dialTarget(ctx context.Context, l *live, first []byte) dialled {
	t := l.flow.Target
	if t.Name == "" || t.Addr.IsValid() || h.opts.Addresses == nil || l.u == h.opts.Direct {
		return dialOne(ctx, l.u, t, first)
	}
	if len(first) > 0 && !upstream.MayRepeat(first) { // nothing may be tried beside it
		d := dialOne(ctx, l.u, t, first)
		if refusesTarget(d.err) {
			if other := h.dialAddresses(ctx, l, first); other.err == nil {
				return other
			}
		}
		return d
	}
	ctx, giveUp := context.WithCancel(ctx) // who has lost
	defer giveUp()
	others := make(chan dialled, 1)
	try := func() {
		d := h.dialAddresses(ctx, l, first)
		if d.err == nil {
			giveUp()
		}
		others <- d
	}
	timer := time.AfterFunc(addressDelay, try)
	d := dialOne(ctx, l.u, t, first)
	refused := refusesTarget(d.err)
	switch begun := !timer.Stop(); {
	case !begun && refused:
		try()
	case !begun:
		return d
	case !refused: // it has answered, or is at fault itself, or has lost
		giveUp()
	}
	other := <-others
	switch {
	case other.err != nil:
		return d
	case d.err == nil:
		abort(other.c)
		return d
	}
	return other
}

func dialOne(ctx context.Context, u *upstream.Upstream, t flow.Target, first []byte) dialled {
	tr := new(upstream.Trace)
	c, err := u.DialStream(upstream.WithTrace(ctx, tr), t, first)
	return dialled{c, tr, err}
}

// refusesTarget says that an upstream could not reach the target: by HTTP 500
// (tinyproxy), 502, 503, 504, by SOCKS5 replies 1 (general failure) and 3 to 6,
// or by silence when it had been reached.
func refusesTarget(err error) bool {
	var e *upstream.Error
	if !errors.As(err, &e) || e.Kind != upstream.Target {
		return e != nil && e.Silent
	}
	switch e.Status {
	case 500, 502, 503, 504, 1, 3, 4, 5, 6:
		return true
	}
	return false
}

// dialAddresses connects to the first address of the flow's name that answers.
// first is sent on that one alone.
func (h *Handler) dialAddresses(ctx context.Context, l *live, first []byte) dialled {
	// Cancelled, and not past a deadline: that would count against the upstream.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(addressLimit, cancel).Stop()
	addrs, err := h.opts.Addresses(ctx, l.u, l.flow.Target.Name)
	if err != nil || len(addrs) == 0 {
		return dialled{err: errors.Join(errors.New("no address to try"), err)}
	}
	addrs = inTurn(addrs, l.flow.Dst.Addr())
	results := make(chan dialled)
	running, next := 0, 0
	start := func() {
		t := flow.Target{Addr: addrs[next], Port: l.flow.Target.Port}
		running++
		next++
		go func() { results <- dialOne(ctx, l.u, t, nil) }()
	}
	start()
	more := time.NewTicker(nextAddress)
	defer more.Stop()
	var last dialled
	for running > 0 {
		select {
		case last = <-results:
			running--
		case <-more.C:
		}
		if last.c != nil {
			break
		}
		if next < len(addrs) && ctx.Err() == nil {
			start()
		}
	}
	cancel()
	for ; running > 0; running-- { // each ends at once now
		if d := <-results; d.c != nil {
			abort(d.c)
		}
	}
	if last.c == nil || len(first) == 0 {
		return last
	}
	if _, last.err = last.c.Write(first); last.err != nil {
		abort(last.c)
		last.c = nil
	}
	return last
}

// inTurn orders addresses by alternating families, at most maxAddresses: first
// that of the address the app has asked for, or IPv4.
func inTurn(addrs []netip.Addr, asked netip.Addr) []netip.Addr {
	var turns [2][]netip.Addr
	for _, a := range addrs {
		i := 0
		if a.Unmap().Is4() == asked.Unmap().Is6() {
			i = 1
		}
		turns[i] = append(turns[i], a)
	}
	var out []netip.Addr
	for i := 0; i < len(addrs) && len(out) < maxAddresses; i++ {
		for _, family := range turns {
			if i < len(family) {
				out = append(out, family[i])
			}
		}
	}
	return out
}
