package main

import (
	"log/slog"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/darwin"
)

func newHost(log *slog.Logger, o platform.Options) (platform.Host, error) { return darwin.New(log, o) }
