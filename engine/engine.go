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

// Options are what an Engine is made from. Log and Host are required.
type Options struct {
	// Config is nil if none can be used: traffic is held then, and ConfigErr is
	// the cause.
	Config *config.Config
	// ConfigErr is why the configuration file is not what Config is; nil if it is.
	ConfigErr error
	Host      platform.Host
	StateDir  string // what outlives a restart is kept here
	NoTUN     bool   // local proxy only
	Up        bool   // want On from the start, whatever was kept
	Version   string // of the service, for status
	Log       *slog.Logger
}

// Engine implements apiserver.Backend. Its methods may be called from any
// goroutine, before, during and after Run.
type Engine struct {
	opt      Options
	log      *slog.Logger
	unusable *api.Error // why there is no configuration; nil if there is one
	rules    *rules.Set
	flows    *route.Handler
	names    *names
	dns      *dns.Server
	ups      *upstreams
	keeper   *keeper
	watch    watchers
	in       chan event
	quit     chan struct{} // closed by Shutdown
	ended    chan struct{} // closed by Run once it is over
	held     atomic.Bool   // flows are refused; written by Run alone, read on every flow
	snap     atomic.Pointer[snapshot]

	// Owned by Run.
	m          machine
	intent     intent
	cause      *api.Error
	hurdle     error     // why traffic cannot be caught, where that is not the cause
	left       error     // why the machine was not restored when it should have been
	mustChoose bool      // the upstream that was proven is gone: only a choice opens
	former     *string   // the choice before the one that came with the try under way; nil if none did
	pipe       *pipeline // nil while nothing runs
	job        *job      // the start or stop in progress, nil if none
	probe      *job      // the look at the upstream in progress, nil if none
	sw         *job      // the check of another upstream in progress, nil if none
	timer      *time.Timer
	waiting    []waiting // calls that have yet to be answered, oldest first
	tries      int       // retries since the last success
	broken     bool      // pipe has died of itself
	looked     time.Time // when the upstream was last looked at
	guard      guard

	quitOnce sync.Once
	work     sync.WaitGroup // of all jobs
}

// New prepares an engine. It reads the kept intent and the fake-address map but
// changes nothing on the machine and starts nothing.
func New(opt Options) (*Engine, error) {
	e := &Engine{
		opt:   opt,
		log:   opt.Log,
		in:    make(chan event, 16),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),
		m:     machine{state: api.Off},
	}
	if opt.Config == nil {
		e.unusable = Explain(opt.ConfigErr)
		opt.Config = config.Default()
		opt.Config.Listen.Proxy = "" // nothing is carried: a port that is taken must not keep traffic from being held
		e.opt.Config = opt.Config
	}
	e.keeper = newKeeper(opt.StateDir, opt.Log, func() { e.tell(changed{}) })
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
		Exchange: e.unlessHeld(e.names.exchange, func() bool { return true }),
		Local:    e.unlessHeld(e.names.local, func() bool { return e.ups.current() == e.ups.direct }),
		Refuse:   e.names.refusesAnswer,
		Log:      opt.Log,
	}); err != nil {
		return nil, err
	}
	e.names.use(e.ups, e.dns, e.rules)
	e.flows = route.New(route.Options{
		Rules:     e.rules,
		Current:   e.ups.current,
		Named:     e.ups.named,
		Direct:    e.ups.direct,
		UDP:       udpPolicy(opt.Config.Protect.UDP),
		Local:     e.isLocal,
		Resolve:   e.dns.Lookup,
		Addresses: e.names.through,
		DNS:       e.dns,
		Blocked:   e.held.Load,
		Process:   processOf(opt.Host),
		Owner:     ownerOf(opt.Host),
		Observe:   e.observe,
		Log:       opt.Log,
	})
	e.ups.openFlows = e.flows.Flows
	e.publish()
	return e, nil
}

// exchange asks one DNS server, packed query in, packed answer out.
type exchange func(ctx context.Context, query []byte) ([]byte, error)

var errHeld = errors.New("no name is asked for while traffic is held")

// unlessHeld is ask, but while traffic is held nothing is asked that could leave
// the local network.
func (e *Engine) unlessHeld(ask exchange, leaves func() bool) exchange {
	return func(ctx context.Context, query []byte) ([]byte, error) {
		if e.held.Load() && leaves() {
			return nil, errHeld
		}
		return ask(ctx, query)
	}
}

// Run works until ctx ends or Shutdown is called, then restores the machine;
// watchers are told that it does and that it has, and their channels are closed.
// It returns nil after an orderly end; an error means that the machine could
// not be restored completely, and says what is left.
func (e *Engine) Run(ctx context.Context) error {
	beside, cancel := context.WithCancel(context.Background())
	var keepers sync.WaitGroup
	keepers.Go(func() {
		if err := e.flows.Run(beside); err != nil {
			e.log.Warn("flows keep what they hold while idle", "err", err)
		}
	})
	keepers.Go(func() { e.ups.run(beside) })
	keepers.Go(func() { e.keeper.run(beside) })
	e.names.setNetwork(uplinkOf(e.opt.Host))
	e.first()
	e.publish()
	e.serve(ctx)
	cancel()
	e.work.Wait()
	keepers.Wait()
	err := errors.Join(e.left, e.dns.Save())
	e.ups.close()
	e.names.close()
	e.publish()
	e.watch.close()
	if err != nil {
		return fmt.Errorf("restore the machine: %w", err)
	}
	return nil
}

// serve takes events until the effect end.
func (e *Engine) serve(ctx context.Context) {
	changes, cancelled, quit := e.opt.Host.Changes(), ctx.Done(), e.quit
	for {
		select {
		case <-cancelled:
			cancelled = nil
			e.apply(inEnd)
		case <-quit:
			quit = nil
			e.apply(inEnd)
		case ev := <-e.in:
			e.handle(ev)
		case <-e.timer.C:
			e.cure()
		case c, ok := <-changes:
			if ok {
				e.network(c)
			} else {
				changes = nil
			}
		}
		select {
		case <-e.ended:
			e.endGuard()
			return
		default:
			e.keepGuard()
			e.publish()
		}
	}
}

// network takes in what the physical network has become.
func (e *Engine) network(c platform.NetChange) {
	e.names.setNetwork(c)
	e.names.switched() // what is open leaves by the former network
	e.ups.flush()
	e.endGuard()
	if c.Up && (e.m.state == api.Blocked || e.m.state == api.Off && e.m.want) {
		e.timer.Reset(0)
	}
}

// first reads the kept intent and acts on it.
func (e *Engine) first() {
	kept, err := loadIntent(e.opt.StateDir)
	e.intent = kept
	switch doubt := e.doubt(kept, err); {
	case doubt != nil && (err != nil || kept.On && kept.Proven):
		e.cause = doubt
		e.apply(inDoubt)
	case doubt != nil: // nothing depends on it
		e.cause, e.intent.Upstream = doubt, ""
	case e.opt.Up || kept.On:
		e.m.proven = kept.On && kept.Proven
		e.apply(inKept)
	}
}

// doubt says why what was kept cannot be carried out as it was meant; nil if it
// can. Another upstream may show who the user is, and no proxy at all surely
// does: which one it is to be instead is for the user to decide.
func (e *Engine) doubt(kept intent, unreadable error) *api.Error {
	if unreadable != nil {
		return &api.Error{
			Code:    api.ErrState,
			Message: "what was wanted before the last stop cannot be read: " + unreadable.Error(),
			Hint:    "say what you want: `atlantic up` or `atlantic down`",
		}
	}
	if e.unusable != nil {
		return e.unusable
	}
	u, err := e.ups.find(kept.Upstream)
	if err != nil {
		e.mustChoose = true
		return e.gone(redactChoice(kept.Upstream))
	}
	e.ups.use(u, kept.Upstream)
	auto := kept.Upstream == "" || kept.Upstream == autoName
	now := exitOf(u)
	switch {
	case !kept.Proven || kept.By == exit{} || kept.By == now:
		return nil
	case auto && e.ups.named(kept.By.Name) == nil, now.Direct && !kept.By.Direct && kept.Upstream != now.Name:
		e.mustChoose = true
		return e.gone(kept.By.Name)
	}
	return nil
}

func (e *Engine) gone(name string) *api.Error {
	where := "no configuration file is there any more"
	if e.opt.Config.Path != "" {
		where = e.opt.Config.Path + " does not have it any more"
	}
	return &api.Error{
		Code:    api.ErrUnknownName,
		Message: fmt.Sprintf("the upstream %q, by which traffic left before, is gone: %s", name, where),
		Hint:    "choose another: `atlantic use NAME` (" + strings.Join(e.ups.names(), ", ") + "); or put it back and start the service again",
	}
}

// Done is closed once Run has restored the machine, or tried to, at its end:
// before watchers are told that the state is Off.
func (e *Engine) Done() <-chan struct{} { return e.ended }

// Shutdown asks Run to end; it does not wait.
func (e *Engine) Shutdown() { e.quitOnce.Do(func() { close(e.quit) }) }
