package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// snapshot is what Run publishes after every event; figures that change with
// traffic are read when a status is asked for.
type snapshot struct {
	state   api.State
	up      *upstream.Upstream // in use
	since   time.Time
	cause   *api.Error
	tun     api.TUN
	proxy   string
	warning string
	dns     api.DNS
	hurdle  error // see Engine
	left    error // see Engine
	again   bool  // Off, but a try that failed is made again
}

// publish makes Run's state visible, and tells the watchers if it has changed.
func (e *Engine) publish() {
	s := &snapshot{state: e.m.state, up: e.ups.current(), since: time.Now().UTC(), cause: e.cause,
		hurdle: e.hurdle, left: e.left, again: e.m.state == api.Off && e.m.want}
	if p := e.pipe; p != nil {
		if p.dev != nil {
			s.tun = api.TUN{Name: p.name, Path: p.stack.Path(), Carrier: p.carrier(), MTU: p.mtu}
		}
		if p.local != nil {
			s.proxy = p.local.Addr().String()
		}
		if p.dnsOn {
			s.dns = api.DNS{Mode: e.opt.Config.DNS.Mode}
		}
		s.warning = p.warning
	}
	old := e.snap.Load()
	// Who has seen On, or Off, may kill the service: a start after that knows it.
	asked, tried := e.keeper.progress()
	if old != nil && old.state != s.state && (s.state == api.On || s.state == api.Off) && tried < asked {
		return // the keeper has Run publish again
	}
	defer e.answer(tried)
	if old != nil && old.state == s.state {
		s.since = old.since
	}
	e.snap.Store(s)
	if old == nil || old.state != s.state || old.up != s.up || causeText(old.cause) != causeText(s.cause) || old.tun != s.tun {
		e.watch.send(e.statusEvent())
	}
}

// Status is one snapshot; it never waits.
func (e *Engine) Status() api.Status {
	s := e.snap.Load()
	c := e.flows.Counters()
	l := e.flows.Latency()
	blocking := e.blocking(s)
	st := api.Status{
		Schema:   api.Schema,
		State:    s.state,
		Since:    s.since,
		Upstream: e.ups.describe(e.ups.current()),
		Latency:  latency(l),
		Flows: api.Flows{Open: c.Open, Total: c.Total, Refused: c.Refused, Blocked: c.Blocked,
			Carried: c.Carried, Reused: c.Reused, Warm: c.Warm, Early: c.Early},
		Bytes:    api.Bytes{Up: c.Up, Down: c.Down, DirectUp: c.DirectUp, DirectDown: c.DirectDown},
		UDP:      api.UDP{Blocked: c.UDPBlocked},
		Protect:  api.Protect{KillSwitch: e.opt.Config.Protect.KillSwitch, Blocking: blocking, Effect: s.effect(blocking)},
		TUN:      s.tun,
		Proxy:    s.proxy,
		DNS:      s.dns,
		Warnings: e.warnings(s),
		Version:  api.Versions{Service: e.opt.Version, API: api.Version},
	}
	st.Upstream.InUse = true
	if s.tun.Name != "" {
		st.Networks = e.names.others()
	}
	st.TUN.IPv6 = hasAddress(s.tun.Name, addr6.Addr()) // whenever somebody switches it on or off
	if c.Carried > 0 {
		st.Reuse = float64(c.Reused) / float64(c.Carried)
	}
	if s.cause != nil {
		st.Cause, st.Code, st.Hint = s.cause.Message, s.cause.Code, s.cause.Hint
	}
	if err := e.keeper.lacks(); err != nil {
		st.Unkept = err.Error()
	}
	return st
}

// blocking reports whether all traffic is held back: it comes to us, as the
// system says itself, and we refuse it.
func (e *Engine) blocking(s *snapshot) bool {
	return e.held.Load() && e.captures(s) == nil
}

// captures says why not all traffic comes to us; nil if it does.
func (e *Engine) captures(s *snapshot) error {
	if c, ok := e.opt.Host.(platform.Captor); ok {
		return c.Captures()
	}
	if s.tun.Name == "" {
		return errNoTUN
	}
	return nil
}

var errNoTUN = errors.New("there is no TUN")

// effect is what becomes of traffic in a state in which no upstream has it.
func (s *snapshot) effect(blocking bool) string {
	switch {
	case s.state == api.Off && s.left != nil:
		return "not all that it changed is undone"
	case s.state == api.Off:
		return "traffic leaves directly"
	case s.state != api.Blocked:
		return ""
	case blocking:
		return "traffic is held back"
	case s.proxy != "":
		return "traffic outside the local proxy leaves directly"
	}
	return "no protection, traffic leaves directly"
}

// manyFailures in a row are no accident. An HTTP proxy that answers nothing is
// found out by them alone: Upstream.Check takes its silence for the target's.
const manyFailures = 3

// warnings are what works less well than it could, by the upstream in use, the
// pipeline and the Host.
func (e *Engine) warnings(s *snapshot) []string {
	var all []string
	if st := e.ups.current().Stats(); s.state == api.On && st.Failures >= manyFailures {
		all = append(all, fmt.Sprintf("the last %d connections have failed: %s", st.Failures, st.Error))
	}
	all = append(all, e.ups.listWarnings()...)
	if s.state == api.On && s.tun.Name != "" {
		if err := e.captures(s); err != nil {
			all = append(all, "not all traffic is taken in: "+err.Error())
		}
	}
	if s.warning != "" {
		all = append(all, s.warning)
	}
	if s.again {
		all = append(all, "it is to be on, and tries again by itself; to give up: `atlantic down`")
	}
	if s.hurdle != nil {
		all = append(all, "traffic cannot be taken in: "+s.hurdle.Error())
	}
	if e.opt.ConfigErr != nil && e.unusable == nil {
		c := Explain(e.opt.ConfigErr)
		all = append(all, "the configuration that worked last is in force, for the file is wrong: "+c.Error())
	}
	if w, ok := e.opt.Host.(platform.Warner); ok {
		all = append(all, w.Warnings()...)
	}
	return all
}

func latency(l route.Latency) api.Latency {
	return api.Latency{
		Added: percentiles(l.Added), FirstByte: percentiles(l.FirstByte),
		Phases: api.LatencyPhases{
			Rules: percentiles(l.Rules), Pick: percentiles(l.Pick), Wait: percentiles(l.Wait),
			Dial: percentiles(l.Dial), TLS: percentiles(l.TLS), Connect: percentiles(l.Connect),
		},
	}
}

func percentiles(p route.Percentiles) api.Percentiles {
	return api.Percentiles{P50: p[0], P95: p[1], P99: p[2]}
}

// Upstreams lists the configured upstreams, and the one given as a URL.
func (e *Engine) Upstreams() api.Upstreams { return e.ups.snapshot() }

// Flows lists the flows that are open now.
func (e *Engine) Flows() []api.Flow {
	infos := e.flows.Flows()
	out := make([]api.Flow, 0, len(infos))
	for _, i := range infos {
		out = append(out, flowOf(i))
	}
	return out
}

// KillFlow ends a flow, as if its upstream had reset it.
func (e *Engine) KillFlow(id uint64) error {
	if !e.flows.Kill(id) {
		return &api.Error{Code: api.ErrNotFound, Message: fmt.Sprintf("there is no flow %d", id), Hint: "`atlantic flows` lists the open ones"}
	}
	return nil
}

// Config is the configuration in force.
func (e *Engine) Config() api.Config {
	return api.Config{Schema: api.Schema, Path: e.opt.Config.Path, TOML: e.opt.Config.TOML()}
}

func flowOf(i route.Info) api.Flow {
	f := api.Flow{
		ID: i.Flow.ID, Network: i.Flow.Network.String(), Inbound: i.Flow.Inbound.String(),
		Source: i.Flow.Src.String(), Target: i.Flow.Target.String(), Process: i.Process,
		Via: i.Via, Rule: i.Rule, Start: i.Flow.Start.UTC(), Up: i.Up, Down: i.Down,
		Reused: i.Trace.Reused, Warm: i.Trace.Warm, Early: i.Trace.Early,
	}
	if i.Trace.Endpoint != i.Via {
		f.Endpoint = i.Trace.Endpoint
	}
	f.Phases = api.Phases{
		Rules: ms(i.Rules), Pick: ms(i.Trace.Pick), Wait: ms(i.Trace.Wait), Dial: ms(i.Trace.Dial), TLS: ms(i.Trace.TLS),
		Connect: ms(i.Trace.Connect), FirstByte: ms(i.FirstByte),
	}
	return f
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
