package main

import (
	"log/slog"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/linux"
)

func newHost(log *slog.Logger, o platform.Options) (platform.Host, error) { return linux.New(log, o) }

func rescueHost(log *slog.Logger, o platform.Options) error { return linux.Rescue(log, o) }
