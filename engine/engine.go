// Package engine is the service's heart: it owns what the user wants, the state
// the machine is in, and the life of the data path.
//
//	apiserver ─► SetPrefs ─┐                     ┌─► platform.Host (TUN, routes, DNS)
//	                       ├─► Run: one goroutine┤
//	host, upstream events ─┘    machine.go: next └─► pipeline: netstack, listener
//	                                                    └─► route ─► upstream
//
// Run is the only goroutine that changes state. It asks next (pure) what an
// input means and carries out the effects; work that takes time (a start, a
// stop, a probe) runs beside it and comes back as an input. Everything else
// reads one atomic snapshot.
//
// engine imports engine/* and the platform contract, never a concrete OS: the
// Host is handed in.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Options are what an Engine is made from. Log, Host and Config are required.
type Options struct {
	Config   *config.Config
	Host     platform.Host
	StateDir string // intent and the fake-address map are kept here
	NoTUN    bool   // local proxy only
	Up       bool   // want On from the start, whatever was kept
	Version  string // of the service, for status
	Log      *slog.Logger
}

// Engine implements apiserver.Backend. Its methods may be called from any
// goroutine, before, during and after Run.
type Engine struct {
	opt   Options
	log   *slog.Logger
	rules *rules.Set
	flows *route.Handler
	names *names
	dns   *dns.Server
	ups   *upstreams
	watch watchers
	in    chan message
	quit  chan struct{} // closed by Shutdown
	ended chan struct{} // closed by Run at its end
	held  atomic.Bool   // flows are refused; read on every flow
	snap  atomic.Pointer[snapshot]

	// Owned by Run.
	m      machine
	intent intent
	cause  *api.Error
	former *string   // the choice before the one that came with the try under way; nil if none did
	pipe   *pipeline // nil while nothing runs
	job    *job      // the start or stop in progress, nil if none
	probe  *job      // the look at the upstream in progress, nil if none
	sw     *job      // the check of another upstream in progress, nil if none
	timer  *time.Timer
	tries  int       // retries since the last success
	broken bool      // pipe has died of itself
	looked time.Time // when the upstream was last looked at

	quitOnce sync.Once
	work     sync.WaitGroup // of all jobs
}

// message is what Run's goroutine is told.
type message struct {
	in      input
	err     error
	pipe    *pipeline  // with inStarted
	from    *job       // the job that speaks, nil if it is not one
	reply   chan error // with prefs and sw
	prefs   *api.Prefs
	sw      *upstreamSwitch
	carrier bool // the carrier of TCP may have changed
	// suspect is an upstream that has just failed a flow.
	suspect *upstream.Upstream
}

// job is work beside Run. Its owner waits for done.
type job struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when answer is set
	answer message
	stale  bool // of a start: another upstream was chosen meanwhile; owned by Run
}

// New prepares an engine. It reads the kept intent and the fake-address map but
// changes nothing on the machine and starts nothing.
func New(opt Options) (*Engine, error) {
	e := &Engine{
		opt:   opt,
		log:   opt.Log,
		in:    make(chan message, 16),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),
		m:     machine{state: api.Off},
	}
	e.timer = time.NewTimer(time.Hour)
	e.timer.Stop()
	var err error
	if e.rules, err = opt.Config.RuleSet(); err != nil {
		return nil, err
	}
	e.names, err = newNames(opt.Config, opt.Host.Control, opt.Log)
	if err != nil {
		return nil, err
	}
	if e.ups, err = newUpstreams(opt.Config, opt.StateDir, upstream.Options{
		Control: opt.Host.Control, Resolve: e.names.lookup, ResolveTarget: e.names.lookupTarget, Log: opt.Log,
	}); err != nil {
		return nil, err
	}
	if e.dns, err = dns.New(dns.Options{
		Mode:     opt.Config.DNS.Mode,
		Fake4:    opt.Config.DNS.FakeRange,
		Fake6:    addr6.Masked(),
		File:     filepath.Join(opt.StateDir, "names"),
		Exchange: e.names.exchange,
		Local:    e.names.local,
		Refuse:   e.names.refusesAnswer,
		Log:      opt.Log,
	}); err != nil {
		return nil, err
	}
	e.names.use(e.ups, e.dns, e.rules)
	e.flows = route.New(route.Options{
		Rules:   e.rules,
		Current: e.ups.current,
		Named:   e.ups.named,
		Direct:  e.ups.direct,
		UDP:     udpPolicy(opt.Config.Protect.UDP),
		Local:   e.isLocal,
		Resolve: e.dns.Lookup,
		DNS:     e.dns,
		Blocked: e.held.Load,
		Process: processOf(opt.Host),
		Observe: e.observe,
		Log:     opt.Log,
	})
	e.ups.openFlows = e.flows.Flows
	e.publish()
	return e, nil
}

// Run works until ctx ends or Shutdown is called, then restores the machine;
// watchers are told that it does and that it has, and their channels are closed.
// It returns nil after an orderly end; an error means that the machine could
// not be restored completely, and says what is left.
func (e *Engine) Run(ctx context.Context) error {
	beside, cancel := context.WithCancel(context.Background())
	var keepers sync.WaitGroup
	defer keepers.Wait()
	defer cancel()
	keepers.Go(func() {
		if err := e.flows.Run(beside); err != nil {
			e.log.Warn("flows keep what they hold while idle", "err", err)
		}
	})
	keepers.Go(func() { e.ups.run(beside) })
	e.names.setNetwork(uplinkOf(e.opt.Host))
	e.first()
	changes := e.opt.Host.Changes()
	for {
		select {
		case <-ctx.Done():
			return e.end()
		case <-e.quit:
			return e.end()
		case m := <-e.in:
			e.handle(m)
		case <-e.timer.C:
			e.cure()
		case c, ok := <-changes:
			if !ok {
				changes = nil
				continue
			}
			e.names.setNetwork(c)
			e.names.switched() // what is open leaves by the former network
			e.ups.flush()
			if e.m.state == api.Blocked && c.Up {
				e.timer.Reset(0)
			}
		}
		e.publish()
	}
}

// first reads the kept intent and acts on it.
func (e *Engine) first() {
	kept, err := loadIntent(e.opt.StateDir)
	if err != nil {
		e.cause = &api.Error{
			Code:    api.ErrState,
			Message: "what was wanted before the last stop cannot be read: " + err.Error(),
			Hint:    "run `atlantic up` or `atlantic down` to decide anew; until then traffic is held",
		}
		e.apply(inUnreadable)
		e.publish()
		return
	}
	e.intent = kept
	e.m.proven = kept.On && kept.Proven
	if kept.Upstream != "" {
		u, err := e.ups.find(kept.Upstream)
		if err == nil {
			e.ups.use(u, kept.Upstream)
		} else {
			e.intent.Upstream = ""
			e.log.Warn("the upstream chosen before is gone", "upstream", redactChoice(kept.Upstream))
		}
		if err != nil && kept.On {
			// Another one may show who the user is: that is for the user to decide.
			e.cause = Explain(err)
			e.cause.Message = "the upstream chosen before is gone from the configuration: " + e.cause.Message
			e.cause.Hint = "choose with `atlantic use NAME` (" + strings.Join(e.ups.names(), ", ") + ") and `atlantic up`; until then traffic is held"
			e.apply(inUnreadable)
			e.publish()
			return
		}
	}
	if e.opt.Up || kept.On {
		e.apply(inUp)
	}
	e.publish()
}

// end is the last thing Run does. The intent stays as it is.
func (e *Engine) end() error {
	e.timer.Stop()
	if e.m.state != api.Off && e.m.state != api.Stopping {
		e.log.Info("state", "from", e.m.state, "to", api.Stopping)
		e.m.state, e.cause = api.Stopping, nil
		e.publish()
	}
	for _, j := range []*job{e.probe, e.sw} {
		if j != nil {
			j.cancel()
		}
	}
	err := e.restore(e.job, e.pipe)
	if err != nil {
		e.cause = notRestored(err)
	}
	close(e.ended)
	e.work.Wait()
	e.pipe, e.m.state = nil, api.Off
	err = errors.Join(err, e.dns.Save())
	e.ups.close()
	e.names.close()
	e.publish()
	e.watch.close()
	if err != nil {
		return fmt.Errorf("restore the machine: %w", err)
	}
	return nil
}

// Done is closed once Run has restored the machine, or tried to, at its end:
// before watchers are told that the state is Off.
func (e *Engine) Done() <-chan struct{} { return e.ended }

// Shutdown asks Run to end; it does not wait.
func (e *Engine) Shutdown() { e.quitOnce.Do(func() { close(e.quit) }) }
