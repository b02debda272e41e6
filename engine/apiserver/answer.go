package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// writeJSON answers a call. That the caller has hung up is no error: nobody
// needs to be told.
func writeJSON(w http.ResponseWriter, code int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	header(w, "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
	return nil
}

func header(w http.ResponseWriter, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}

// writeError answers a call that failed, as an api.Error.
func writeError(w http.ResponseWriter, err error) {
	var method *methodError
	if errors.As(err, &method) {
		w.Header().Set("Allow", method.allowed)
		_ = writeJSON(w, http.StatusMethodNotAllowed, api.Error{Code: api.ErrBadRequest,
			Message: method.Error(), Hint: "send the same path with " + method.allowed})
		return
	}
	var known *api.Error
	if !errors.As(err, &known) {
		known = &api.Error{Code: api.ErrInternal, Message: err.Error()}
	}
	_ = writeJSON(w, httpStatus(known.Code), known)
}

func httpStatus(c api.ErrorCode) int {
	switch c {
	case api.ErrBadRequest, api.ErrConfig:
		return http.StatusBadRequest
	case api.ErrPermission:
		return http.StatusForbidden
	case api.ErrNotFound, api.ErrUnknownName:
		return http.StatusNotFound
	case api.ErrUnsupported:
		return http.StatusNotImplemented
	case api.ErrPortInUse:
		return http.StatusConflict
	case api.ErrRefused, api.ErrUnreachable, api.ErrAuth, api.ErrTLS, api.ErrProtocol, api.ErrTargetFailed:
		return http.StatusBadGateway
	case api.ErrTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// panicked logs a handler's panic and answers its call, if no answer is under
// way yet.
func (s *Server) panicked(w http.ResponseWriter, r *http.Request, p any) {
	s.log.Error("local api: panic", "method", r.Method, "path", clip(r.URL.Path), "panic", p, "stack", string(debug.Stack()))
	writeError(w, &api.Error{Code: api.ErrInternal, Message: "the service made a mistake in this call",
		Hint: "its log says where; please report it"})
}
