package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/atlanticproxy/atlanticproxy/app/hint"
	"github.com/atlanticproxy/atlanticproxy/engine"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

// fail tells the user what went wrong and what to do.
func fail(w io.Writer, err error) {
	e := engine.Explain(err)
	var ce *config.Error
	if errors.As(err, &ce) { // the line of the file stands in it
		e.Message, e.Hint = err.Error(), ""
	}
	if errors.Is(err, platform.ErrRunning) || errors.Is(err, localsock.ErrRunning) {
		e.Hint = "steer it with atlantic; or end it: sudo atlantic service stop, or Ctrl-C where it runs"
	}
	fmt.Fprintf(w, "atlanticd: %s\n", e.Message)
	if e.Hint != "" {
		fmt.Fprintf(w, "  %s\n", hint.For(os.Args[0], "").In(e.Hint))
	}
	var ue usageError
	if errors.As(err, &ue) {
		fmt.Fprintln(w, "  see atlanticd --help")
	}
}

func exitCode(err error) int {
	var ue usageError
	var ae *api.Error
	switch {
	case errors.As(err, &ue):
		return 2
	case errors.As(err, &ae) && ae.Code == api.ErrPermission:
		return 4
	case errors.Is(err, platform.ErrPermission), errors.Is(err, fs.ErrPermission):
		return 4
	}
	return 1
}
