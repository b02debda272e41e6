package main

import (
	"log/slog"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/darwin"
)

func newHost(log *slog.Logger, o platform.Options) (platform.Host, error) { return darwin.New(log, o) }

// rescueHost relies on New, which undoes what a crashed run left.
func rescueHost(log *slog.Logger, o platform.Options) error {
	host, err := darwin.New(log, o)
	if err != nil {
		return err
	}
	return host.Close()
}
