//go:build !linux

package tray

import (
	"context"
	"runtime"
	"time"
)

const noHostHint = "This desktop shows no tray icons; use the command line: atlantic status"

// Desktop tells whether there is a desktop that shows tray icons. Windows and
// macOS always have one; whether this build can use it, newUI knows. On macOS
// a terminal is the likelier place to be started from.
func Desktop() bool { return runtime.GOOS == "windows" }

func awaitHost(context.Context, time.Duration) bool { return true }

// claimSession: the system ends its users' programs by itself.
func claimSession() (<-chan struct{}, error) { return nil, nil }
