package main

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"

	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

func privileged() bool { return windows.GetCurrentProcessToken().IsElevated() }

func defaultSocket() string { return localsock.DefaultPath() }

func raiseFileLimit() {}

// runService runs under the service control manager if that started us, and in
// the foreground otherwise.
func runService(ctx context.Context, o runOptions) error {
	if yes, err := svc.IsWindowsService(); err != nil || !yes {
		return runUntilSignal(ctx, o)
	}
	s := &windowsService{ctx: ctx, opt: o}
	if err := svc.Run("atlanticd", s); err != nil {
		return err
	}
	return s.err
}

// windowsService answers the service control manager for the time of one run.
type windowsService struct {
	ctx context.Context // of the process, for Execute whose signature is fixed
	opt runOptions
	err error
}

func (s *windowsService) Execute(_ []string, req <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	const accepts = svc.AcceptStop | svc.AcceptShutdown
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- run(ctx, s.opt, os.Stdout) }()
	status <- svc.Status{State: svc.Running, Accepts: accepts}
	for {
		select {
		case s.err = <-done:
			if s.err != nil {
				return true, 1
			}
			return false, 0
		case r := <-req:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending, WaitHint: uint32((15 * time.Second).Milliseconds())}
				cancel()
			}
		}
	}
}
