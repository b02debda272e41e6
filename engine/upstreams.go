package engine

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
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
	opt       upstream.Options
	direct    *upstream.Upstream
	list      []*upstream.Upstream // configured, in order; direct alone if there are none
	byName    map[string]*upstream.Upstream
	cur       atomic.Pointer[upstream.Upstream]
	balanced  []*balanced // of byName those with several endpoints
	verdicts  *verdicts
	resting   atomic.Bool         // nothing is made ahead
	openFlows func() []route.Info // set by New, before run
	// changed has a value after another upstream was chosen, or one of them has
	// come to another verdict on early data.
	changed chan struct{}

	mu      sync.Mutex
	choice  string               // guarded by mu: auto, a name, or the ad-hoc one's URL
	extra   *upstream.Upstream   // guarded by mu: the ad-hoc one, nil if none
	retired []*upstream.Upstream // guarded by mu
}

func newUpstreams(cfg *config.Config, stateDir string, opt upstream.Options) (*upstreams, error) {
	us := &upstreams{
		opt:      opt,
		byName:   map[string]*upstream.Upstream{},
		choice:   autoName,
		verdicts: loadVerdicts(stateDir),
		changed:  make(chan struct{}, 1),
	}
	us.resting.Store(true)
	us.opt.EarlyKnown = us.verdicts.known
	us.opt.EarlyChanged = func(u *upstream.Upstream) {
		us.verdicts.keep(u)
		us.poke()
	}
	var err error
	if us.direct, err = us.open(proxy.Spec{Name: "direct", Scheme: proxy.Direct}, 0); err != nil {
		return nil, err
	}
	us.byName["direct"] = us.direct
	for _, c := range cfg.Upstreams {
		spec, err := c.Spec()
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", c.Name, err)
		}
		u, err := us.open(spec, c.Pool)
		if err != nil {
			return nil, err
		}
		us.add(u)
	}
	if err := us.addBalanced(cfg, stateDir); err != nil {
		return nil, err
	}
	if len(us.list) == 0 {
		us.list = append(us.list, us.direct)
	}
	us.cur.Store(us.list[0])
	return us, nil
}

// open makes an upstream of one proxy, with what is known about it.
func (us *upstreams) open(spec proxy.Spec, pool int) (*upstream.Upstream, error) {
	u, err := upstream.New(spec, us.pooled(pool))
	if err == nil {
		u.SetEarly(us.verdicts.known(spec))
	}
	return u, err
}

// pooled are the options with so many warm connections at most.
func (us *upstreams) pooled(most int) upstream.Options {
	o := us.opt
	if o.PoolMax = most; most == 0 {
		o.PoolMax = -1 // none
	}
	return o
}

func (us *upstreams) add(u *upstream.Upstream) {
	us.list = append(us.list, u)
	us.byName[u.Spec().Name] = u
}

// flush lets go of connections that were made before the network changed.
func (us *upstreams) flush() { us.each((*upstream.Upstream).Flush) }

// rest lets go of everything that was made ahead, while nobody wants it.
func (us *upstreams) rest() {
	us.resting.Store(true)
	us.each((*upstream.Upstream).Rest)
}

// wake undoes rest.
func (us *upstreams) wake() { us.resting.Store(false) }

func (us *upstreams) each(f func(*upstream.Upstream)) {
	us.mu.Lock()
	defer us.mu.Unlock()
	for _, u := range append(append([]*upstream.Upstream{us.extra}, us.list...), us.retired...) {
		if u != nil {
			f(u)
		}
	}
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
// name in whatever case, or a URL. It changes nothing.
func (us *upstreams) find(choice string) (*upstream.Upstream, error) {
	if choice == "" || strings.EqualFold(choice, autoName) {
		return us.list[0], nil
	}
	for name, u := range us.byName { // no two differ by case alone
		if strings.EqualFold(name, choice) {
			return u, nil
		}
	}
	if !strings.Contains(choice, "://") {
		return nil, us.unknown(choice)
	}
	spec, err := proxy.ParseURL("", choice)
	if err != nil {
		e := &api.Error{Code: api.ErrBadRequest, Message: err.Error()}
		var pe *proxy.Error
		if errors.As(err, &pe) {
			e.Hint = pe.Hint
		}
		return nil, e
	}
	spec.Name = spec.Host
	if spec.Scheme == "direct" {
		return us.direct, nil
	}
	return us.open(spec, config.DefaultPool)
}

// unknown is the error for a name that nothing has. It quotes nothing else: a URL
// that lacks its scheme may have a password.
func (us *upstreams) unknown(name string) *api.Error {
	e := &api.Error{Code: api.ErrUnknownName, Message: "there is no upstream named like that",
		Hint: "known: " + strings.Join(us.names(), ", ") + "; or give a URL such as socks5://user:password@host:1080"}
	if config.IsName(name) {
		e.Message = fmt.Sprintf("there is no upstream named %q", name)
	}
	return e
}

// use makes u, which find has returned for choice, the one in use.
func (us *upstreams) use(u *upstream.Upstream, choice string) {
	us.mu.Lock()
	defer us.mu.Unlock()
	switch name := u.Spec().Name; {
	case choice == "" || strings.EqualFold(choice, autoName):
		choice = autoName
	case us.byName[name] == u: // as the configuration writes it
		choice = name
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
		a := us.describe(u)
		if b := us.balancedOf(a.Name); b != nil && b.up == u {
			a.Endpoints, a.Lists = b.endpoints(), b.listInfos()
		}
		a.InUse = u == cur
		out.Upstreams = append(out.Upstreams, a)
	}
	return out
}

// describe is what the outside may see of u.
func (us *upstreams) describe(u *upstream.Upstream) api.Upstream {
	spec, st := u.Spec(), u.Stats()
	a := api.Upstream{
		Name: spec.Name, Scheme: spec.Scheme, UDP: u.Packets() != nil,
		RTTms:   float64(st.RTT) / float64(time.Millisecond),
		Address: spec.Addr(), Failures: st.Failures, Flows: st.Flows,
		Warm: st.Warm, WarmHits: st.WarmHits, EarlyHits: st.EarlyHits, Sessions: st.Sessions,
	}
	if b := us.balancedOf(spec.Name); b != nil && b.up == u && b.scheme != "" {
		a.Scheme, a.Address = b.scheme, b.address
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

// redactChoice hides the credentials of a choice that is a URL: the user name
// too, which may be an account's, or hold a session. What is neither a URL nor a
// name is not shown at all.
func redactChoice(choice string) string {
	if config.IsName(choice) {
		return choice
	}
	s, err := proxy.ParseURL("", choice)
	if err != nil {
		return "(a URL)"
	}
	s.Username, s.Password = "", ""
	return s.String()
}
