//go:build linux || darwin

package main

import (
	"context"
	"os"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func privileged() bool { return os.Geteuid() == 0 }

func defaultSocket() string { return localsock.DefaultPath() }

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
