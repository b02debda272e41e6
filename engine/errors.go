package engine

import (
	"errors"
	"syscall"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// Explain turns what went wrong (anything that New, Run or SetPrefs returns) into what a user is shown: a code for
// programs, the message, and what to do.
func Explain(err error) *api.Error {
	var ae *api.Error
	if errors.As(err, &ae) {
		return ae
	}
	out := &api.Error{Code: api.ErrInternal, Message: err.Error()}
	var ue *upstream.Error
	var ce *config.Error
	switch {
	case errors.As(err, &ce):
		bare := config.Error{File: ce.File, Line: ce.Line, Column: ce.Column, Msg: ce.Msg}
		out.Code, out.Message, out.Hint = api.ErrConfig, bare.Error(), ce.Hint
	case errors.As(err, &ue):
		out.Code, out.Hint = upstreamCode(ue.Kind), ue.Hint
	case errors.Is(err, syscall.EADDRINUSE):
		out.Code = api.ErrPortInUse
		out.Hint = "another program has that port: end it, or set another in [listen] proxy"
	case errors.Is(err, platform.ErrPermission):
		out.Code = api.ErrSystem
		out.Hint = "the service must run as root to own a TUN; without root use --no-tun and the local proxy"
	case errors.Is(err, platform.ErrNoTUN):
		out.Code = api.ErrSystem
		out.Hint = "load the tun module (modprobe tun) or give the container /dev/net/tun; or use --no-tun"
	case errors.Is(err, platform.ErrUnsupported):
		out.Code = api.ErrSystem
	}
	return out
}

func upstreamCode(k upstream.Kind) api.ErrorCode {
	switch k {
	case upstream.Refused:
		return api.ErrRefused
	case upstream.Unreachable:
		return api.ErrUnreachable
	case upstream.Timeout:
		return api.ErrTimeout
	case upstream.Auth:
		return api.ErrAuth
	case upstream.TLS:
		return api.ErrTLS
	case upstream.Protocol:
		return api.ErrProtocol
	case upstream.Target:
		return api.ErrTargetFailed
	}
	return api.ErrInternal
}

func causeText(e *api.Error) string {
	if e == nil {
		return ""
	}
	return e.Message
}

// observe is told of every dial through an upstream. A failure that is the
// upstream's own makes Run look at it; Run alone decides.
func (e *Engine) observe(u *upstream.Upstream, err error) {
	if err == nil || u != e.ups.current() {
		return
	}
	var ue *upstream.Error
	if !errors.As(err, &ue) || !ue.FromUpstream() {
		return
	}
	select {
	case e.in <- suspect{u, err}:
	default: // Run is busy: there will be another failure
	}
}
