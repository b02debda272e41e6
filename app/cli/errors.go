package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// usageError is a command line that makes no sense.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

// exitWith ends with a code about which everything has been said.
type exitWith struct{ code int }

func (e *exitWith) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// failure is an error with a hint and an exit code of its own.
type failure struct {
	code      int
	msg, hint string
}

func (e *failure) Error() string { return e.msg }

// report tells the user what went wrong and, on a line of its own, what to do;
// it returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	var silent *exitWith
	if errors.As(err, &silent) {
		return silent.code
	}
	f := explain(err)
	first, rest, more := strings.Cut(f.msg, "\n")
	a.err.line("%s %s", a.err.red("error:"), first)
	if more {
		a.err.line("%s", rest)
	}
	if f.hint != "" {
		a.err.line("%s  %s", a.err.bold("hint:"), f.hint)
	}
	return f.code
}

// explain says what an error means to a user.
func explain(err error) failure {
	var (
		known   *failure
		usage   *usageError
		refused *api.Error
		foreign *localsock.ForeignServerError
		file    *config.Error
	)
	switch {
	case errors.As(err, &known):
		return *known
	case errors.As(err, &usage):
		return failure{exitUsage, usage.msg, "see: atlantic --help"}
	case errors.Is(err, client.ErrAbsent):
		return failure{exitAbsent, err.Error(), "start it: sudo atlantic service start   (or, just once: sudo atlanticd run)"}
	case errors.As(err, &foreign):
		return failure{exitPermission, foreign.Error(), "stop that program, or say which socket is the service's: --socket PATH"}
	case errors.As(err, &refused):
		code := exitError
		if refused.Code == api.ErrPermission {
			code = exitPermission
		}
		return failure{code, refused.Message, refused.Hint}
	case errors.As(err, &file):
		return failure{exitError, fileError(file, err), file.Hint}
	case errors.Is(err, fs.ErrPermission):
		return failure{exitPermission, err.Error(), "run with sudo"}
	case errors.Is(err, context.Canceled):
		return failure{exitError, "interrupted", ""}
	case errors.Is(err, context.DeadlineExceeded):
		return failure{exitError, "the service does not answer", lookAtLog}
	}
	return failure{exitError, err.Error(), ""}
}

// fileError says where in the file something is wrong, and shows the line. The
// hint is left to the caller; whatever err was wrapped with stays in front.
func fileError(e *config.Error, err error) string {
	before, _, _ := strings.Cut(err.Error(), e.Error())
	bare := *e
	bare.Hint = ""
	return before + bare.Error()
}
