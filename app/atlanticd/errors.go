package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/atlanticproxy/atlanticproxy/engine"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

// fail tells the user what went wrong and what to do.
func fail(w io.Writer, err error) {
	fmt.Fprintf(w, "atlanticd: %v\n", err)
	if hint := engine.Explain(err).Hint; hint != "" {
		fmt.Fprintf(w, "  %s\n", hint)
	}
	var ue usageError
	if errors.As(err, &ue) {
		fmt.Fprintln(w, "  see atlanticd --help")
	}
}

func exitCode(err error) int {
	var ue usageError
	switch {
	case errors.As(err, &ue):
		return 2
	case errors.Is(err, platform.ErrPermission), errors.Is(err, fs.ErrPermission):
		return 4
	}
	return 1
}
