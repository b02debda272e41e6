package listener

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// How long connections without a request are kept: those of apps, and ours to
// targets, of which at most so many per target.
const (
	appIdle         = 2 * time.Minute
	targetIdle      = 90 * time.Second
	maxIdlePerHost  = 32
	maxIdleInAll    = 256
	responseTimeout = 5 * time.Minute // to the first byte; slow apps' requests are no slower than that
	continueTimeout = time.Second     // for 100 Continue, then the body is sent without (RFC 9110 section 10.1.1)
	maxAnswerHead   = 256 << 10
	maxApps         = 64 // with connections of their own; when there are more all are forgotten
)

// web serves plain HTTP (RFC 9110 section 7): net/http's server reads requests
// strictly, forward.go passes them on, and an http.Transport for each app that
// is told from others keeps connections to targets alive, each of them one flow.
type web struct {
	server *http.Server
	chunks sync.Pool // *[chunkBytes]byte
	conns  chan net.Conn
	done   chan struct{} // closed by close
	owner  *server

	mu   sync.RWMutex
	apps map[string]*http.Transport // guarded by mu; emptied by forget
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// appKey is the context key of the app's *webConn.
type appKey struct{}

func newWeb(ctx context.Context, s *server) *web {
	w := &web{conns: make(chan net.Conn), done: make(chan struct{}), owner: s, apps: make(map[string]*http.Transport)}
	w.chunks.New = func() any { return new([chunkBytes]byte) }
	w.dial = func(dial context.Context, _, address string) (net.Conn, error) { return s.dial(ctx, dial, address) }
	w.server = &http.Server{
		Handler:           http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.handle(ctx, rw, r) }),
		ReadHeaderTimeout: handshakeTimeout,
		IdleTimeout:       appIdle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
		ConnContext: func(c context.Context, conn net.Conn) context.Context {
			return context.WithValue(c, appKey{}, conn)
		},
	}
	s.running.Go(func() { w.server.Serve(w) }) // ends in close
	return w
}

// serve gives app to the HTTP server and returns when that has closed it.
func (w *web) serve(app *client) {
	c := &webConn{prefixed: prefixed{app.TCPConn, app.rest()}, closed: make(chan struct{})}
	if w.owner.opts.App != nil {
		c.app = w.owner.opts.App(app.addr(), flow.AddrPortOf(app.LocalAddr()))
	}
	select {
	case w.conns <- c:
		app.said()
		<-c.closed
	case <-w.done:
		app.TCPConn.Close()
	}
}

func (w *web) close() {
	w.server.Close() // closes w as a listener too
	w.forget()
}

// transport is what carries the requests of app.
func (w *web) transport(app string) *http.Transport {
	w.mu.RLock()
	t := w.apps[app]
	w.mu.RUnlock()
	if t != nil {
		return t
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if t = w.apps[app]; t != nil {
		return t
	}
	if len(w.apps) >= maxApps {
		w.drop()
	}
	t = &http.Transport{
		DialContext:            w.dial,
		MaxIdleConns:           maxIdleInAll,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        targetIdle,
		ResponseHeaderTimeout:  responseTimeout,
		ExpectContinueTimeout:  continueTimeout,
		MaxResponseHeaderBytes: maxAnswerHead,
		DisableCompression:     true, // bytes pass as they are
	}
	w.apps[app] = t
	return t
}

// forget lets no request that comes from now on have a connection that is open
// already. One in use closes when its response has ended.
func (w *web) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drop()
}

// drop is forget; the caller holds mu.
func (w *web) drop() {
	for _, t := range w.apps {
		t.CloseIdleConnections() // and so it keeps no other
	}
	clear(w.apps)
}

// Accept, Close and Addr make w the net.Listener of its server.
func (w *web) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.done:
		return nil, net.ErrClosed
	}
}

func (w *web) Close() error {
	select {
	case <-w.done:
	default:
		close(w.done)
	}
	return nil
}

func (w *web) Addr() net.Addr { return &net.TCPAddr{} }

// webConn is an app's connection in the hands of the HTTP server.
type webConn struct {
	prefixed
	app    string // as Options.App names it
	once   sync.Once
	closed chan struct{}
}

// Close tells serve.
func (c *webConn) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// handle serves one request.
func (w *web) handle(ctx context.Context, rw http.ResponseWriter, r *http.Request) {
	w.owner.running.Add(1) // serve of this connection still counts, so Wait cannot have returned
	defer w.owner.running.Done()
	switch {
	case r.Method == http.MethodConnect:
		w.connect(ctx, rw, r)
	case !r.URL.IsAbs():
		http.Error(rw, "this is a proxy, not a web site: set it as the HTTP or SOCKS5 proxy of an app", http.StatusBadRequest)
	case r.URL.Scheme != "http":
		http.Error(rw, r.URL.Scheme+":// does not go through an HTTP proxy this way: use CONNECT", http.StatusBadRequest)
	default:
		if _, err := targetOfAuthority(r.URL.Host, 80); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		w.forward(rw, r)
	}
}

// connect is CONNECT on a connection that has carried another request before.
func (w *web) connect(ctx context.Context, rw http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		http.Error(rw, "cannot open a tunnel: "+err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	app := conn.(*webConn)
	early := append(slices.Clone(unread(buffered.Reader)), app.prefix...)
	w.owner.serveConnect(ctx, &client{TCPConn: app.TCPConn, early: early, said: func() {}}, r)
}
