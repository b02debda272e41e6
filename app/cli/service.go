package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	unit "github.com/atlanticproxy/atlanticproxy/assets/service"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

// packagedUnit is there if the .deb or .rpm brought the service.
const packagedUnit = "/usr/lib/systemd/system/atlanticd.service"

// installedUnit is where `service install` puts its own.
const installedUnit = "/etc/systemd/system/atlanticd.service"

// lookAtLog is where a service that fails says why.
const lookAtLog = "look at its log: journalctl -u atlanticd"

const (
	serviceAnswers = 5 * time.Second  // for a service that was started to answer
	serviceEnds    = 20 * time.Second // for one that was asked to end, as the unit has it
)

func (a *app) service() *cobra.Command {
	return group("service", "Install, remove, start and stop the background service",
		a.serviceVerb("install", "Make the service start with this computer, and start it", a.install),
		a.serviceVerb("uninstall", "Stop the service and remove it", installed(a.uninstall)),
		a.serviceVerb("start", "Start the service", installed(a.start)),
		a.serviceStop(),
		a.serviceStatus())
}

func (a *app) serviceVerb(use, short string, run func(context.Context, service.Service) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() > 0 { // -1 on Windows, which refuses by itself
				return &failure{exitPermission, "only root may " + use + " the service", "run: sudo " + cmd.CommandPath()}
			}
			s, err := systemService()
			if err == nil && masked() {
				err = &failure{exitError, "the service is masked: systemd will not start it", "unmask it: sudo systemctl unmask atlanticd"}
			}
			if err != nil {
				return err
			}
			return run(cmd.Context(), s)
		}}
}

// installHint is for who has no service yet.
const installHint = "install it: sudo atlantic service install   (or, just once: sudo atlanticd run)"

// installed refuses what needs an installed service where there is none.
func installed(run func(context.Context, service.Service) error) func(context.Context, service.Service) error {
	return func(ctx context.Context, s service.Service) error {
		if _, err := s.Status(); notInstalled(err) {
			return &failure{exitAbsent, "the service is not installed", installHint}
		}
		return run(ctx, s)
	}
}

// masked says whether an administrator has forbidden systemd to start it.
func masked() bool {
	target, err := os.Readlink(installedUnit)
	return err == nil && target == os.DevNull
}

// notInstalled believes what Status says only where there is no unit: with
// systemd it also says so of a service that is just stopping, and if systemctl
// does not answer.
func notInstalled(status error) bool {
	for _, unit := range []string{packagedUnit, installedUnit} {
		if _, err := os.Stat(unit); err == nil {
			return false
		}
	}
	return errors.Is(status, service.ErrNotInstalled)
}

// daemonPath is the atlanticd beside this program.
func daemonPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if real, err := filepath.EvalSymlinks(self); err == nil {
		self = real
	}
	name := "atlanticd"
	if filepath.Ext(self) == ".exe" {
		name += ".exe"
	}
	return filepath.Join(filepath.Dir(self), name), nil
}

func existingDaemon() (string, error) {
	daemon, err := daemonPath()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(daemon); err != nil {
		return "", &failure{exitError, "there is no " + daemon, "put atlanticd and atlantic into the same directory"}
	}
	return daemon, nil
}

// systemService is the service as the system's service manager knows it.
func systemService() (service.Service, error) {
	daemon, err := daemonPath()
	if err != nil {
		return nil, err
	}
	unit, err := unit.Unit(daemon)
	if err != nil && runtime.GOOS == "linux" {
		return nil, &failure{exitError, err.Error(), "move atlantic and atlanticd, for example to /usr/local/bin"}
	}
	s, err := service.New(program{}, &service.Config{
		Name:        "atlanticd", // as the packages call it
		DisplayName: "AtlanticProxy",
		Description: "AtlanticProxy: sends this computer's traffic through a proxy",
		Executable:  daemon,
		Arguments:   []string{"run"},
		Option:      service.KeyValue{"SystemdScript": unit, "RunAtLoad": true, "OnFailure": "restart"},
	})
	// System V is what the library takes a Linux without any manager for; it
	// would not start a service again that crashed.
	if err != nil || s.Platform() == "unix-systemv" {
		return nil, &failure{exitAbsent, "this system has no service manager that is known", "run it in the foreground: sudo atlanticd run"}
	}
	return s, nil
}

// program satisfies the library; it is atlanticd that runs as a service.
type program struct{}

func (program) Start(service.Service) error { return nil }
func (program) Stop(service.Service) error  { return nil }

// start starts the service and waits until it answers, so that the next
// command finds it.
func (a *app) start(ctx context.Context, s service.Service) error {
	if err := s.Start(); err != nil {
		return fmt.Errorf("start the service: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, serviceAnswers)
	defer cancel()
	for {
		st, err := a.client().Status(ctx)
		if err == nil {
			a.out.line("running; turn it on with: atlantic up")
			a.summary(st)
			return nil
		}
		select {
		case <-ctx.Done():
			f := absent(fmt.Errorf("the service was started but does not answer: %w", err), paths.Config())
			f.hint = lookAtLog
			return &f
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serviceStop stops the service by the manager that would start it again, and
// one that runs by itself by asking it.
func (a *app) serviceStop() *cobra.Command {
	cmd := a.serviceVerb("stop", "Stop the service; the network is restored", installed(a.stop))
	managed := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := managed(cmd, args)
		if f := (*failure)(nil); errors.As(err, &f) && f.code == exitAbsent {
			if asked := a.askToStop(cmd.Context()); !errors.Is(asked, client.ErrAbsent) {
				return asked
			}
		}
		return err
	}
	return cmd
}

func (a *app) stop(ctx context.Context, s service.Service) error {
	if err := s.Stop(); err != nil {
		return fmt.Errorf("stop the service: %w", err)
	}
	if err := a.askToStop(ctx); !errors.Is(err, client.ErrAbsent) {
		return err // one ran beside the manager's
	}
	return a.stopped()
}

// askToStop has a service end that no manager knows, and waits until it has.
func (a *app) askToStop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serviceEnds)
	defer cancel()
	if err := a.client().Shutdown(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return &failure{exitError, fmt.Sprintf("the service has not ended within %v", serviceEnds), "see: atlantic status"}
		case <-time.After(50 * time.Millisecond):
			if _, err := a.client().Status(ctx); errors.Is(err, client.ErrAbsent) {
				return a.stopped()
			}
		}
	}
}

// stopped looks whether the service that has ended has restored the network,
// and mends what it has not.
func (a *app) stopped() error {
	daemon, err := existingDaemon()
	if err != nil {
		a.out.line("stopped")
		return err
	}
	text, err := exec.Command(daemon, "rescue").CombinedOutput()
	if err != nil {
		a.out.line("stopped")
		return &failure{exitError, "the network is not as it was before: " + strings.TrimSpace(string(text)), "try again: sudo atlantic rescue"}
	}
	a.out.line("stopped; the network is as it was before")
	return nil
}

// serviceState is what `service status --json` prints.
type serviceState struct {
	Schema    int    `json:"schema"`
	Installed bool   `json:"installed"`
	State     string `json:"state"`   // running, stopped, unknown
	Manager   string `json:"manager"` // "" if this system has none that is known
	Answers   bool   `json:"answers"` // on its socket; it may run without being installed
}

func (a *app) serviceStatus() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether the service is installed and running; exit code 5 unless it answers",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			state, hint := a.inspectService(cmd.Context())
			if asJSON {
				if err := a.out.json(state); err != nil {
					return err
				}
			} else {
				known := "not installed"
				if state.Installed {
					known = "installed with " + state.Manager + ", " + state.State
				}
				answers := "does not answer on its socket"
				if state.Answers {
					answers = "answers on its socket"
				}
				a.out.line("the service is %s; it %s", known, answers)
			}
			if !state.Answers {
				a.err.line("%s  %s", a.err.bold("hint:"), hint)
				return &exitWith{exitAbsent}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// inspectService also says what to do if the service does not answer.
func (a *app) inspectService(ctx context.Context) (state serviceState, hint string) {
	_, err := a.client().Status(ctx)
	state = serviceState{Schema: api.Schema, State: "unknown", Answers: err == nil}
	s, err := systemService()
	if err != nil {
		return state, explain(err).hint
	}
	state.Manager = s.Platform()
	st, err := s.Status()
	if notInstalled(err) {
		return state, installHint
	}
	state.Installed, hint = true, "start it: sudo atlantic service start"
	switch st {
	case service.StatusRunning:
		state.State, hint = "running", lookAtLog
	case service.StatusStopped:
		state.State = "stopped"
	}
	return state, hint
}
