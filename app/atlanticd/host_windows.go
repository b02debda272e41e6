package main

import (
	"log/slog"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/windows"
)

func newHost(log *slog.Logger, o platform.Options) (platform.Host, error) { return windows.New(log, o) }
