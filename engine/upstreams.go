package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// autoName is the choice that means "the first one of the configuration".
const autoName = "auto"

// keepRetired is how many replaced ad-hoc upstreams stay open for the flows
// that still use them.
const keepRetired = 4

// upstreams are the configured upstreams, at most one more that the user gave
// as a URL, and which of them is in use.
type upstreams struct {
	opt    upstream.Options
	direct *upstream.Upstream
	list   []*upstream.Upstream // configured, in order; direct alone if there are none
	byName map[string]*upstream.Upstream
	cur    atomic.Pointer[upstream.Upstream]
	// changed has a value after another upstream was chosen, or one of them has
	// come to another verdict on early data.
	changed chan struct{}

	mu      sync.Mutex
	choice  string               // guarded by mu: auto, a name, or the ad-hoc one's URL
	extra   *upstream.Upstream   // guarded by mu: the ad-hoc one, nil if none
	retired []*upstream.Upstream // guarded by mu
}

func newUpstreams(cfg *config.Config, control func(string, string, syscall.RawConn) error,
	resolve func(context.Context, string) ([]netip.Addr, error), log *slog.Logger) (*upstreams, error) {
	us := &upstreams{
		opt:    upstream.Options{Control: control, Resolve: resolve, Log: log},
		byName: map[string]*upstream.Upstream{},
		choice: autoName,

		changed: make(chan struct{}, 1),
	}
	us.opt.EarlyChanged = func(*upstream.Upstream) { us.poke() }
	spec, err := upstream.ParseURL("direct", "direct://")
	if err != nil {
		return nil, err
	}
	if us.direct, err = upstream.New(spec, us.opt); err != nil {
		return nil, err
	}
	us.byName["direct"] = us.direct
	for _, c := range cfg.Upstreams {
		spec, err := specOf(c)
		if err != nil {
			return nil, err
		}
		u, err := upstream.New(spec, us.opt)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", c.Name, err)
		}
		us.list = append(us.list, u)
		us.byName[c.Name] = u
	}
	if len(us.list) == 0 {
		us.list = append(us.list, us.direct)
	}
	us.cur.Store(us.list[0])
	return us, nil
}

// poke puts a value into changed.
func (us *upstreams) poke() {
	select {
	case us.changed <- struct{}{}:
	default:
	}
}

// current is the upstream in use; never nil.
func (us *upstreams) current() *upstream.Upstream { return us.cur.Load() }

// named is the configured upstream of that name, or nil.
func (us *upstreams) named(name string) *upstream.Upstream { return us.byName[name] }

// find returns the upstream that a choice means: "auto" or "", a configured
// name, or a URL. It changes nothing.
func (us *upstreams) find(choice string) (*upstream.Upstream, error) {
	if choice == "" || choice == autoName {
		return us.list[0], nil
	}
	if u := us.byName[choice]; u != nil {
		return u, nil
	}
	if !strings.Contains(choice, "://") {
		return nil, &api.Error{
			Code:    api.ErrUnknownName,
			Message: fmt.Sprintf("there is no upstream named %q", choice),
			Hint:    "known: " + strings.Join(us.names(), ", ") + "; or give a URL such as socks5://user:password@host:1080",
		}
	}
	spec, err := upstream.ParseURL("", choice)
	if err != nil {
		return nil, &api.Error{Code: api.ErrBadRequest, Message: err.Error(),
			Hint: "an upstream is scheme://[user:password@]host[:port] with scheme http, https, socks5 or direct"}
	}
	spec.Name = spec.Host
	if spec.Scheme == "direct" {
		return us.direct, nil
	}
	return upstream.New(spec, us.opt)
}

// use makes u, which find has returned for choice, the one in use.
func (us *upstreams) use(u *upstream.Upstream, choice string) {
	us.mu.Lock()
	defer us.mu.Unlock()
	if choice == "" {
		choice = autoName
	}
	us.choice = choice
	us.cur.Store(u)
	us.poke()
	if us.extra != nil && us.extra != u {
		us.retired = append(us.retired, us.extra)
		us.extra = nil
	}
	if us.byName[u.Spec().Name] != u && u != us.list[0] {
		us.extra = u
	}
	for len(us.retired) > keepRetired {
		us.retired[0].Close()
		us.retired = us.retired[1:]
	}
}

// discard closes u, which find has returned, if nothing uses it.
func (us *upstreams) discard(u *upstream.Upstream) {
	us.mu.Lock()
	defer us.mu.Unlock()
	if u != us.byName[u.Spec().Name] && u != us.extra && u != us.direct {
		u.Close()
	}
}

func (us *upstreams) names() []string {
	names := []string{autoName, "direct"}
	for _, u := range us.list {
		if n := u.Spec().Name; n != "direct" {
			names = append(names, n)
		}
	}
	return names
}

// snapshot lists all upstreams for people, without credentials.
func (us *upstreams) snapshot() api.Upstreams {
	us.mu.Lock()
	defer us.mu.Unlock()
	out := api.Upstreams{Schema: api.Schema, Choice: redactChoice(us.choice)}
	cur := us.cur.Load()
	all := append([]*upstream.Upstream(nil), us.list...)
	if us.list[0] != us.direct {
		all = append(all, us.direct)
	}
	if us.extra != nil {
		all = append(all, us.extra)
	}
	for _, u := range all {
		a := describe(u)
		a.InUse = u == cur
		out.Upstreams = append(out.Upstreams, a)
	}
	return out
}

// describe is what the outside may see of u.
func describe(u *upstream.Upstream) api.Upstream {
	spec, st := u.Spec(), u.Stats()
	a := api.Upstream{
		Name: spec.Name, Scheme: spec.Scheme, UDP: u.Packets() != nil,
		RTTms:   float64(st.RTT) / float64(time.Millisecond),
		Address: spec.Addr(), Failures: st.Failures, Flows: st.Flows,
		Warm: st.Warm, WarmHits: st.WarmHits, EarlyHits: st.EarlyHits, Sessions: st.Sessions,
	}
	if spec.Scheme != "direct" {
		a.EarlyData, a.Early = u.Early() == upstream.EarlyCarries, u.Early().String()
	}
	if st.Failures > 0 {
		a.Error = st.Error
	}
	return a
}

func (us *upstreams) close() {
	us.mu.Lock()
	defer us.mu.Unlock()
	for _, u := range append(append([]*upstream.Upstream{us.direct, us.extra}, us.list...), us.retired...) {
		if u != nil {
			u.Close()
		}
	}
}

// redactChoice hides the password of a choice that is a URL.
func redactChoice(choice string) string {
	if !strings.Contains(choice, "://") {
		return choice
	}
	u, err := url.Parse(choice)
	if err != nil {
		return "(a URL)"
	}
	return u.Redacted()
}

// upstreamSwitch is the answer of the check that precedes a switch.
type upstreamSwitch struct {
	to     *upstream.Upstream
	choice string
	on     *bool // what else was asked for in the same call
}

// SetPrefs changes what the user wants. It returns once the change has been
// accepted: an unknown upstream, and one that does not answer while traffic
// depends on it, are refused and nothing changes; coming up or going down takes
// place afterwards and is told by Watch.
func (e *Engine) SetPrefs(ctx context.Context, p api.Prefs) (api.Status, error) {
	reply := make(chan error, 1)
	select {
	case e.in <- message{prefs: &p, reply: reply}:
	case <-ctx.Done():
		return e.Status(), ctx.Err()
	case <-e.ended:
		return e.Status(), errStopping
	}
	select {
	case err := <-reply:
		return e.Status(), err
	case <-ctx.Done():
		return e.Status(), ctx.Err()
	case <-e.ended:
		return e.Status(), errStopping
	}
}

var (
	errStopping = errors.New("the service is stopping")
	errReplaced = &api.Error{Code: api.ErrBadRequest, Message: "another command came before this upstream was checked",
		Hint: "`atlantic status` shows what is in use now"}
)

func (e *Engine) setPrefs(m message) {
	p := m.prefs
	if e.sw != nil && (p.Upstream != nil || p.On != nil && !*p.On) {
		e.sw.cancel() // who asked for it is told by switched
		e.sw = nil
	}
	if p.Upstream != nil {
		u, err := e.ups.find(*p.Upstream)
		if err != nil {
			m.reply <- err
			return
		}
		staysUp := (e.m.state == api.On || e.m.state == api.Blocked) && (p.On == nil || *p.On)
		if staysUp && u != e.ups.current() {
			sw := &upstreamSwitch{to: u, choice: *p.Upstream, on: p.On}
			e.sw = e.spawn(func(ctx context.Context) message {
				return message{sw: sw, err: u.Check(ctx), reply: m.reply}
			})
			return
		}
		e.choose(u, *p.Upstream)
	}
	e.setOn(p.On)
	e.publish() // the caller reads the new status as soon as it is answered
	m.reply <- nil
}

// choose puts u in use and keeps the choice. Flows that are open stay with the
// former one, but nothing new goes there; what was found out about it, or is
// still being found out, does not count any more.
func (e *Engine) choose(u *upstream.Upstream, choice string) {
	former := e.ups.current()
	e.ups.use(u, choice)
	if u != former {
		e.reconnect()
		if e.probe != nil {
			e.probe.cancel()
			e.probe = nil
		}
		if e.m.state == api.Starting && e.job != nil {
			e.job.stale = true
			e.job.cancel()
		}
	}
	e.intent.Upstream = choice
	if err := saveIntent(e.opt.StateDir, e.intent); err != nil {
		e.log.Error("keep the choice of upstream", "err", err)
	}
}

// reconnect keeps connections that are open from serving what is asked from now
// on: other than flows of apps, they would never end.
func (e *Engine) reconnect() {
	e.names.switched()
	if e.pipe != nil && e.pipe.local != nil {
		e.pipe.local.Forget()
	}
}

// switched ends what setPrefs began: the new upstream has been checked.
func (e *Engine) switched(m message) {
	if m.from != e.sw {
		m.err = errReplaced
	} else {
		e.sw = nil
	}
	if m.err != nil {
		e.ups.discard(m.sw.to)
		m.reply <- Explain(m.err)
		return
	}
	e.choose(m.sw.to, m.sw.choice)
	if e.m.state == api.Blocked && e.pipe != nil && !e.broken && e.job == nil {
		e.cause, e.tries = nil, 0
		e.apply(inRecovered)
	}
	e.setOn(m.sw.on)
	e.publish()
	m.reply <- nil
}

func (e *Engine) setOn(on *bool) {
	switch {
	case on == nil:
	case *on:
		e.apply(inUp)
	default:
		e.apply(inDown)
	}
}
