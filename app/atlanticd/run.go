package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/atlanticproxy/atlanticproxy/app/hint"
	"github.com/atlanticproxy/atlanticproxy/engine"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/apiserver"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

type runOptions struct {
	config, state, socket string
	noTUN, up, verbose    bool
}

// run starts everything in order and takes it down in the reverse one. It
// returns when ctx ends, when somebody asks the API to shut down, or when a
// part fails.
func run(ctx context.Context, o runOptions, stdout io.Writer) (err error) {
	level := slog.LevelInfo
	switch {
	case o.verbose:
		level = slog.LevelDebug
	case term.IsTerminal(int(os.Stderr.Fd())): // tell says there what happens
		level = slog.LevelWarn
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := harden(); err != nil {
		log.Warn("this service has more rights than it needs", "err", err)
	}
	if o.socket == "" {
		o.socket = localsock.DefaultPath()
	}
	if err := mayRun(o); err != nil {
		return err
	}
	if err := os.MkdirAll(o.state, 0o700); err != nil {
		log.Error("the state directory cannot be made", "err", err) // what a crashed run left is undone all the same
	}
	// The socket comes first: a second service must find out before it could
	// undo, as a crashed run's remains, what the first one has made.
	sock, err := localsock.Listen(o.socket)
	if err != nil {
		return fmt.Errorf("local API: %w", err)
	}
	defer sock.Close()
	// What a crashed run has left goes next, before the configuration is read: no
	// typo in it may keep the machine without names.
	host, err := newHost(log, platform.Options{StateDir: o.state})
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, host.Close()); err == nil {
			fmt.Fprintln(stdout, "AtlanticProxy has ended; everything is undone.")
		}
	}()
	eng, err := newEngine(log, o, host)
	if err != nil {
		return err
	}
	raiseFileLimit()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The API outlives ctx: whoever watches sees the machine restored.
	serving, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	var wait sync.WaitGroup
	wait.Go(func() { tell(ctx, eng, stdout, programs(o.socket), o.up) })
	wait.Go(func() {
		if err := apiserver.New(eng, apiserver.Options{Log: log}).Serve(serving, sock); err != nil && serving.Err() == nil {
			log.Error("local API", "err", err)
			cancel()
		}
	})
	wait.Go(func() {
		select {
		case <-time.After(trimAfter):
			trim()
		case <-ctx.Done():
		}
	})
	err = eng.Run(ctx)
	cancel()
	hangUp()
	wait.Wait()
	return err
}

// mayRun refuses a TUN without the rights for one. Such a process cannot undo
// what a crashed run left either.
func mayRun(o runOptions) error {
	if privileged() || o.noTUN {
		return nil
	}
	cfg, err := config.Load(o.config)
	if err == nil && cfg.TUN.Enabled {
		err = fmt.Errorf("a TUN needs root: %w", platform.ErrPermission)
	}
	return err
}

// newEngine makes the engine that the configuration asks for. A file that cannot
// be used ends a service on which nothing depends. If what is kept binds it, it
// takes the configuration that worked last or, without one, holds traffic, and
// says in both cases what is wrong with the file.
func newEngine(log *slog.Logger, o runOptions, host platform.Host) (*engine.Engine, error) {
	opt := engine.Options{Host: host, StateDir: o.state, NoTUN: o.noTUN, Up: o.up, Version: version, Log: log}
	cfg, err := config.Load(o.config)
	if err == nil {
		opt.Config = cfg
		eng, newErr := engine.New(opt)
		if newErr == nil {
			return eng, nil
		}
		err = newErr
	}
	if !engine.Bound(o.state) {
		return nil, err
	}
	log.Error("the configuration cannot be used", "err", err)
	opt.ConfigErr = err
	if opt.Config, err = engine.LastGood(o.state); err == nil {
		var eng *engine.Engine
		if eng, err = engine.New(opt); err == nil {
			return eng, nil
		}
	}
	log.Error("nor can the one that worked last", "err", err)
	opt.Config = nil
	return engine.New(opt)
}

// trimAfter is when the start is over.
const trimAfter = time.Second

// programs says how to start this program and the one beside it, with the
// socket where that one would not find it by itself.
func programs(socket string) hint.Programs {
	if socket == localsock.ClientPath() && os.Getenv(localsock.PathVar) == "" { // another shell has no such variable
		socket = ""
	}
	return hint.For(os.Args[0], socket)
}

// tell prints, for whoever runs the service in a terminal, what it has done and
// how to steer it, once for each state it enters. Being off is no news before
// the first start and at the end.
func tell(ctx context.Context, eng *engine.Engine, w io.Writer, p hint.Programs, starts bool) {
	last, said := api.Status{}, ""
	ending := func() bool { // that it has ended is said at the end
		select {
		case <-eng.Done():
			return true
		default:
			return ctx.Err() != nil
		}
	}
	show := func(st api.Status) {
		if st.State == last.State && st.Cause == last.Cause && st.Protect.Effect == last.Protect.Effect {
			return
		}
		news := st.State != api.Off || st.Cause != "" || !ending() && !(starts && last.State == "")
		last = st
		if text := p.In(summary(st, p.Atlantic())); news && text != said && text != "" {
			fmt.Fprint(w, text)
			said = text
		}
	}
	events := eng.Watch(ctx)
	show(eng.Status())
	for ev := range events {
		if ev.Status != nil {
			show(*ev.Status)
		}
	}
}

// summary is what has become true.
func summary(st api.Status, steer string) string {
	switch st.State {
	case api.On:
		s := "AtlanticProxy is on.\n"
		if st.TUN.Name != "" {
			s += fmt.Sprintf("  every app   leaves through %s (%s, %s path)\n", upstreamText(st), st.TUN.Name, st.TUN.Path)
		}
		if st.Proxy != "" {
			s += fmt.Sprintf("  local proxy %s, HTTP and SOCKS5, through %s\n", st.Proxy, upstreamText(st))
		}
		return s + notes(st) + fmt.Sprintf("  steer it    %s status · %s use NAME · %s down\n  end it      Ctrl-C, which undoes everything\n", steer, steer, steer)
	case api.Off:
		return "AtlanticProxy is off; " + st.Protect.Effect + ".\n" + why(st) + notes(st) + fmt.Sprintf("  turn it on  %s up\n", steer)
	case api.Blocked:
		return "AtlanticProxy is blocked; " + st.Protect.Effect + ".\n" + why(st) + notes(st) + fmt.Sprintf("  give up     %s down\n", steer)
	}
	return ""
}

func notes(st api.Status) (s string) {
	for _, warn := range st.Warnings {
		s += "  note        " + warn + "\n"
	}
	return s
}

// why is what went wrong, if anything did, and what to do.
func why(st api.Status) (s string) {
	if st.Cause != "" {
		s = "  why         " + st.Cause + "\n"
	}
	if st.Hint != "" {
		s += "  what to do  " + st.Hint + "\n"
	}
	return s
}

func upstreamText(st api.Status) string {
	if st.Upstream.Address == "" {
		return st.Upstream.Name
	}
	return fmt.Sprintf("%s (%s %s)", st.Upstream.Name, st.Upstream.Scheme, st.Upstream.Address)
}

// endsWithin is how long rescue waits for a service that may be just ending.
const endsWithin = 3 * time.Second

// rescue undoes a crashed run without starting one. It refuses while a service
// runs with the same state.
func rescue(w io.Writer, state string) error {
	if !privileged() {
		return &api.Error{Code: api.ErrPermission, Message: "only root may restore the network", Hint: "run: sudo atlantic rescue"}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := rescueHost(log, platform.Options{StateDir: state})
	for end := time.Now().Add(endsWithin); errors.Is(err, platform.ErrRunning) && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
		err = rescueHost(log, platform.Options{StateDir: state})
	}
	if err != nil {
		return fmt.Errorf("rescue: %w", err)
	}
	fmt.Fprintln(w, "nothing of AtlanticProxy is left in this machine's network")
	return nil
}

// runUntilSignal is run as an ordinary foreground program.
func runUntilSignal(ctx context.Context, o runOptions) error {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup(1) has it: then a closed terminal means nothing
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, ends...)
	defer stop()
	return run(ctx, o, os.Stdout)
}
