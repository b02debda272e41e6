package engine

import (
	"context"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// Sessions lists the exit identities in use.
func (e *Engine) Sessions() api.Sessions { return api.Sessions{Schema: api.Schema} }

// NewSession takes a new identity at an upstream that has several.
func (e *Engine) NewSession(context.Context, api.NewSession) (api.Session, error) {
	return api.Session{}, &api.Error{Code: api.ErrBadRequest, Message: "this upstream has no sessions"}
}
