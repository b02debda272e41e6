//go:build linux || darwin

package main

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func privileged() bool { return os.Geteuid() == 0 }

func defaultSocket() string { return localsock.DefaultPath() }

// defaultState is the system's place for root, the user's own otherwise.
func defaultState() string {
	if privileged() {
		return stateDir
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "atlantic")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, ".local", "state", "atlantic")
}

// raiseFileLimit takes as many descriptors as the system allows: every flow
// needs two.
func raiseFileLimit() {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l) // the old limit serves, with fewer flows
	}
}

func runService(ctx context.Context, o runOptions) error { return runUntilSignal(ctx, o) }
