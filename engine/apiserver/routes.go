package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
)

// access says who may make a call. The zero value allows nobody: a route that
// was not thought about is closed.
type access uint8

const (
	nobody    access = iota
	everybody        // any local user
	admins           // root, the service's own user, members of the group atlantic
)

// route is one call of the API.
type route struct {
	method string
	path   string // a last segment {…} stands for one segment of the request's path
	access access
	query  string // the one query parameter it takes and needs; "" if none
	body   bool   // it takes a JSON body; serve says which
	serve  func(s *Server, w http.ResponseWriter, r *http.Request, arg string) error
}

// routes is the whole API, and the only place that says who may call what.
func routes() []route {
	return []route{
		{method: "GET", path: "/v1/status", access: everybody, serve: (*Server).status},
		{method: "PATCH", path: "/v1/prefs", access: admins, body: true, serve: (*Server).prefs},
		{method: "GET", path: "/v1/watch", access: admins, serve: (*Server).watch},
		{method: "GET", path: "/v1/upstreams", access: admins, serve: (*Server).upstreams},
		{method: "GET", path: "/v1/session", access: admins, serve: (*Server).sessions},
		{method: "POST", path: "/v1/session/new", access: admins, body: true, serve: (*Server).newSession},
		{method: "GET", path: "/v1/flows", access: admins, serve: (*Server).flows},
		{method: "DELETE", path: "/v1/flows/{id}", access: admins, body: true, serve: (*Server).killFlow},
		{method: "GET", path: "/v1/why", access: admins, query: "host", serve: (*Server).why},
		{method: "GET", path: "/v1/config", access: admins, serve: (*Server).config},
		{method: "GET", path: "/v1/metrics", access: admins, serve: (*Server).metrics},
		{method: "POST", path: "/v1/shutdown", access: admins, body: true, serve: (*Server).shutdown},
	}
}

// find returns the route of a call, and what stood in place of its {…}.
func find(method, path string) (route, string, error) {
	var allowed []string
	for _, r := range routes() {
		arg, ok := r.match(path)
		if !ok {
			continue
		}
		if r.method == method {
			return r, arg, nil
		}
		allowed = append(allowed, r.method)
	}
	if allowed != nil {
		return route{}, "", &methodError{allowed: strings.Join(allowed, ", ")}
	}
	if laterCall(path) {
		return route{}, "", notYet(path, "what this version measures: GET /v1/status, GET /v1/metrics")
	}
	return route{}, "", &api.Error{Code: api.ErrNotFound, Message: "the local API has no such call",
		Hint: "an older service may be running: compare the versions with: atlantic version"}
}

func (r route) match(path string) (arg string, ok bool) {
	prefix, _, hasArg := strings.Cut(r.path, "{")
	if !hasArg {
		return "", path == r.path
	}
	arg, ok = strings.CutPrefix(path, prefix)
	return arg, ok && arg != "" && !strings.Contains(arg, "/")
}

// wellFormed refuses requests with parts that the call does not take: a caller
// that believes in them should not be left believing.
func (r route) wellFormed(req *http.Request) error {
	if !r.body && (req.ContentLength != 0 || len(req.TransferEncoding) > 0) {
		return badRequest("this call takes no body", "send it without one")
	}
	if r.body {
		switch t, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type")); t {
		case "application/json", "", "application/x-www-form-urlencoded": // the last is what curl -d says of any body
		default:
			return badRequest("the body must be application/json", "set the header Content-Type: application/json")
		}
	}
	values, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return badRequest("the query cannot be read", "percent-encode what stands behind the ?")
	}
	for name, v := range values {
		if name != r.query || len(v) != 1 {
			return badRequest("there is an unknown or repeated query parameter", r.queryHint())
		}
	}
	if r.query != "" && values.Get(r.query) == "" {
		return badRequest("the query parameter "+r.query+" is missing", r.queryHint())
	}
	return nil
}

// queryHint says what the query may be.
func (r route) queryHint() string {
	if r.query == "" {
		return "this call takes none"
	}
	return "the query is ?" + r.query + "=…, once"
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request, _ string) error {
	return writeJSON(w, http.StatusOK, s.backend.Status())
}

func (s *Server) prefs(w http.ResponseWriter, r *http.Request, _ string) error {
	var p prefsBody
	if err := readJSON(w, r, &p); err != nil {
		return err
	}
	if err := p.refuseLater(); err != nil {
		return err
	}
	ctx, cancel := patient(w, r)
	defer cancel()
	st, err := s.backend.SetPrefs(ctx, p.Prefs)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, st)
}

// patient gives a call the time to look at an upstream before it is accepted.
// A recorder has no deadlines; then there is none to move.
func patient(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Now().Add(prefsTimeout))
	return context.WithTimeout(r.Context(), prefsTimeout-time.Second)
}

func (s *Server) sessions(w http.ResponseWriter, _ *http.Request, _ string) error {
	list := s.backend.Sessions()
	if list.Sessions == nil {
		list.Sessions = []api.Session{} // [] and not null
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) newSession(w http.ResponseWriter, r *http.Request, _ string) error {
	var want api.NewSession
	if err := readOptionalJSON(w, r, &want); err != nil {
		return err
	}
	for _, v := range []string{want.Upstream, want.App, want.Domain} {
		if len(v) > 4096 {
			return badRequest("a name in the body is longer than 4096 bytes", "the names of upstreams: GET /v1/upstreams")
		}
	}
	ctx, cancel := patient(w, r)
	defer cancel()
	made, err := s.backend.NewSession(ctx, want)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, api.MadeSession{Schema: api.Schema, Session: made})
}

func (s *Server) upstreams(w http.ResponseWriter, _ *http.Request, _ string) error {
	return writeJSON(w, http.StatusOK, s.backend.Upstreams())
}

func (s *Server) flows(w http.ResponseWriter, _ *http.Request, _ string) error {
	list := api.FlowList{Schema: api.Schema, Flows: s.backend.Flows()}
	if list.Flows == nil {
		list.Flows = []api.Flow{} // [] and not null
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) killFlow(w http.ResponseWriter, r *http.Request, arg string) error {
	if err := readOptionalJSON(w, r, &struct{}{}); err != nil {
		return err
	}
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil {
		return badRequest("a flow's id is a number", "the ids of live flows: GET /v1/flows")
	}
	if err := s.backend.KillFlow(id); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}

func (s *Server) why(w http.ResponseWriter, r *http.Request, _ string) error {
	host := r.URL.Query().Get("host")
	if len(host) > 255+len(":65535") || strings.ContainsFunc(host, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return badRequest("not a host name",
			"give a host name or an address, with a port if it matters: example.com:22")
	}
	answer, err := s.backend.Why(host)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (s *Server) config(w http.ResponseWriter, _ *http.Request, _ string) error {
	return writeJSON(w, http.StatusOK, s.backend.Config())
}

func (s *Server) shutdown(w http.ResponseWriter, r *http.Request, _ string) error {
	if err := readOptionalJSON(w, r, &struct{}{}); err != nil {
		return err
	}
	err := writeJSON(w, http.StatusAccepted, struct{}{})
	s.backend.Shutdown()
	return err
}

const bodyHint = "the body is one JSON object with the fields of this call only"

var errNoBody = badRequest("the body is missing", bodyHint)

// readOptionalJSON is readJSON where no body at all says as much as {}.
func readOptionalJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if err := readJSON(w, r, v); !errors.Is(err, errNoBody) {
		return err
	}
	return nil
}

// readJSON reads exactly one JSON object with no field that v does not have.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		return badBody(err)
	}
	text = bytes.TrimSpace(text)
	switch {
	case len(text) == 0:
		return errNoBody
	case text[0] != '{': // null would pass for an object
		return badBody(errors.New("it is no object"))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badBody(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if err != nil {
			return badBody(err)
		}
		return badRequest("there is something after the JSON value", bodyHint)
	}
	return nil
}

func badBody(err error) error {
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return badRequest("the body is longer than 64 KiB", bodyHint)
	}
	return badRequest("the body is not the JSON this call takes: "+clip(err.Error()), bodyHint)
}

func badRequest(message, hint string) error {
	return &api.Error{Code: api.ErrBadRequest, Message: message, Hint: hint}
}

// clip bounds what of the caller's own input goes into an error.
func clip(s string) string {
	const most = 200 // bytes
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// methodError is a known path with a method that it does not have.
type methodError struct{ allowed string }

func (e *methodError) Error() string { return "this call takes " + e.allowed }
