//go:build darwin && !cgo

package tray

import (
	"errors"
)

// newUI fails: AppKit is reached through cgo only.
func newUI() (ui, error) {
	return nil, errors.New("this build has no tray: on macOS it needs cgo; the command line does everything it does")
}
