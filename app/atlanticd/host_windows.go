package main

import (
	"log/slog"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/windows"
)

func newHost(log *slog.Logger, o platform.Options) (platform.Host, error) { return windows.New(log, o) }

// rescueHost relies on New, which undoes what a crashed run left.
func rescueHost(log *slog.Logger, o platform.Options) error {
	host, err := windows.New(log, o)
	if err != nil {
		return err
	}
	return host.Close()
}
