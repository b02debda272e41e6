package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/pflag"

	"github.com/atlanticproxy/atlanticproxy/app/client"
	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
	"github.com/atlanticproxy/atlanticproxy/platform/paths"
)

// usageError is a command line that makes no sense.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

// flagError is a usageError about flags that could not be read.
type flagError struct{ usageError }

func (e *flagError) Unwrap() error { return &e.usageError }

// shown is an argument as an error may show it: quoted if it looks like a name.
// All else may be a URL with a password.
func shown(arg string) string {
	if config.IsName(arg) {
		return fmt.Sprintf("%q", arg)
	}
	return "(not shown: it may hold a password)"
}

// flagText is an error of reading flags without what was given as a value.
func flagText(err error) string {
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && !config.IsName(unknown.GetSpecifiedName()):
		return "unknown flag " + shown(unknown.GetSpecifiedName())
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return "unknown flag -" + unknown.GetSpecifiedName()
	case errors.As(err, &value):
		return "the value of --" + value.GetFlag().Name + " is none that it takes: " + value.GetFlag().Value.Type()
	}
	return err.Error()
}

// exitWith ends with a code about which everything has been said.
type exitWith struct{ code int }

func (e *exitWith) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// failure is an error with a hint and an exit code of its own.
type failure struct {
	code      int
	msg, hint string
}

func (e *failure) Error() string { return e.msg }

// notOn is an `up` that did not get there, or a change that could not be kept,
// and what is true now.
type notOn struct {
	failure
	status api.Status
}

func (e *notOn) Unwrap() error { return &e.failure }

// failed is what a verb with --json prints, in one line, if it fails.
type failed struct {
	Schema      int       `json:"schema"`
	*api.Status           // nil unless `up` did not get there
	Problem     api.Error `json:"error"`
}

// report tells the user what went wrong and, on a line of its own, what to do;
// with --json it tells programs too. It returns the exit code.
func (a *app) report(err error, asJSON bool) int {
	if err == nil {
		return exitOK
	}
	var silent *exitWith
	if errors.As(err, &silent) {
		return silent.code
	}
	f := explain(err)
	f.msg, f.hint = a.named(f.msg), a.named(f.hint)
	if asJSON {
		_ = json.NewEncoder(a.out.w).Encode(problem(err, f)) // it is said on stderr anyway
	}
	for i, line := range lines(f.msg) {
		if i == 0 {
			a.err.line("%s %s", a.err.red("error:"), line)
		} else {
			a.err.line("%s", line)
		}
	}
	if f.hint != "" {
		a.err.line("%s  %s", a.err.bold("hint:"), f.hint)
	}
	return f.code
}

// problem is a failure for programs.
func problem(err error, f failure) failed {
	out := failed{Schema: api.Schema, Problem: api.Error{Code: api.ErrInternal, Message: f.msg, Hint: f.hint}}
	switch f.code {
	case exitUsage:
		out.Problem.Code = api.ErrBadRequest
	case exitNotConnected:
		out.Problem.Code = api.ErrNotConnected
	case exitPermission:
		out.Problem.Code = api.ErrPermission
	case exitAbsent:
		out.Problem.Code = api.ErrNoService
	}
	var refused *api.Error
	var not *notOn
	switch {
	case errors.As(err, &refused):
		out.Problem.Code = refused.Code
	case errors.As(err, &not):
		out.Status = &not.status
		if not.status.Code != "" {
			out.Problem.Code = not.status.Code
		}
	}
	return out
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
		return absent(err, paths.Config())
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

// absent is a service that does not answer. If its configuration is wrong, that
// is the likely cause, and this program can tell as well as the service's log.
func absent(err error, path string) failure {
	f := failure{exitAbsent, err.Error(), "start it: sudo atlantic service start   (or, just once: sudo atlanticd run)"}
	_, wrong := config.Load(path)
	if file := (*config.Error)(nil); errors.As(wrong, &file) {
		f.msg += "\nits configuration is wrong: " + fileError(file, wrong)
		f.hint = "mend that; then " + f.hint
	}
	return f
}

// fileError says where in the file something is wrong, and shows the line. The
// hint is left to the caller; whatever err was wrapped with stays in front.
func fileError(e *config.Error, err error) string {
	before, _, _ := strings.Cut(err.Error(), e.Error())
	bare := *e
	bare.Hint = ""
	return before + bare.Error()
}
