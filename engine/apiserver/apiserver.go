// Package apiserver serves the local API: HTTP/1.1 and JSON over the unix
// socket or named pipe that platform/localsock listens on.
//
//	tray, CLI ──► localsock ──► Serve ──► guard ──► routes ──► Backend (*engine.Engine)
//	                 │            │          │         │
//	                 │            │          │         └ one table: method, path, who may
//	                 │            │          └ no browsers, no foreign Host
//	                 │            └ bounded connections, bounded headers, deadlines
//	                 └ whom the kernel says is at the other end
//
// Everybody who can reach the socket is hostile until the table says
// otherwise: other users may read the status and nothing else. The API takes
// no paths and no commands, so that nobody can make a privileged service open
// or run something.
//
// It may import engine/api and platform/localsock only.
package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// Limits of the local API.
const (
	maxBodyBytes   = 64 << 10 // of a request
	maxHeaderBytes = 8 << 10  // of a request, first line included (net/http adds 4 KiB of slack)
	maxConns       = 4096     // open connections of those who may write; root has as many again
	maxGuestConns  = 64       // open connections of everybody else together
	maxWatchers    = 2048     // GET /v1/watch at one time

	headerTimeout   = 5 * time.Second  // for a request's headers to arrive
	requestTimeout  = 10 * time.Second // for a request's body to arrive, and for its answer to be taken
	prefsTimeout    = 60 * time.Second // for a change to be accepted: the new upstream is looked at first
	idleTimeout     = 2 * time.Minute  // of a connection between two requests
	eventTimeout    = 5 * time.Second  // for a watcher to take one event
	shutdownTimeout = 2 * time.Second  // for calls in flight when Serve ends
)

// Backend is what the API speaks for. All methods may be called from any
// goroutine. Errors that are an *api.Error reach the caller as they are.
type Backend interface {
	Control
	Inspect
	Identity
}

// Control steers the service.
type Control interface {
	// Status returns one snapshot. It does not block.
	Status() api.Status
	// SetPrefs changes the user's intent and returns the status after the
	// change was accepted.
	SetPrefs(context.Context, api.Prefs) (api.Status, error)
	// Watch delivers events until ctx ends; then, or when the reader does not
	// keep up, the backend closes the channel. It never waits for the reader.
	// The server sends a full status of its own before the first event.
	Watch(context.Context) <-chan api.Event
	// Shutdown asks the service to end in order, and returns at once.
	Shutdown()
}

// Inspect reads what the service knows.
type Inspect interface {
	Upstreams() api.Upstreams
	Flows() []api.Flow
	// KillFlow ends the flow with that id; *api.Error ErrNotFound if there is none.
	KillFlow(id uint64) error
	Why(host string) (api.Why, error)
	Config() api.Config
}

// Identity is about the exits of upstreams that have several.
type Identity interface {
	Sessions() api.Sessions
	// NewSession makes a new identity, dials through it and only then puts it in
	// use.
	NewSession(context.Context, api.NewSession) (api.Session, error)
}

// Options of New.
type Options struct {
	Log *slog.Logger // nil: slog.DiscardHandler
	// PeerOf says who is at the other end of a fresh connection; nil means
	// localsock.PeerOf. A connection whose peer cannot be told may do what
	// anybody may.
	PeerOf func(net.Conn) (localsock.Peer, error)
}

// Server is the local API in front of a Backend.
type Server struct {
	backend  Backend
	log      *slog.Logger
	peerOf   func(net.Conn) (localsock.Peer, error)
	timeout  time.Duration // requestTimeout
	watchers atomic.Int64
}

// New returns a Server; it starts nothing.
func New(b Backend, o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.PeerOf == nil {
		o.PeerOf = localsock.PeerOf
	}
	return &Server{backend: b, log: o.Log, peerOf: o.PeerOf, timeout: requestTimeout}
}

// Serve answers on ln until ctx ends, then closes ln and lets calls in flight
// finish for a moment: watchers still get the last events of a backend that ends.
// It returns nil when ctx ended it.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	calls, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	srv := &http.Server{
		Handler:           s,
		BaseContext:       func(net.Listener) context.Context { return calls },
		ConnContext:       connContext,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       s.timeout,
		WriteTimeout:      s.timeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true,
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		late, done := context.WithTimeout(context.Background(), shutdownTimeout)
		defer done()
		if srv.Shutdown(late) != nil {
			srv.Close() // what is still open now is not worth waiting for
		}
	}()
	err := srv.Serve(newListener(ln, s.peerOf, s.log))
	ended := ctx.Err() != nil
	cancel()
	<-stopped
	if ended && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ServeHTTP answers one call. A panic in the backend becomes an error of this
// call and a line in the log; the service lives on.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(w, r, p)
		}
	}()
	if err := s.serve(w, r); err != nil {
		writeError(w, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	if err := refuseBrowser(r); err != nil {
		return err
	}
	route, arg, err := find(r.Method, r.URL.EscapedPath())
	if err != nil {
		return err
	}
	if err := authorize(peerOf(r.Context()), route); err != nil {
		return err
	}
	if err := route.wellFormed(r); err != nil {
		return err
	}
	return route.serve(s, w, r, arg)
}
