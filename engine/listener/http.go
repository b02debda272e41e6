package listener

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/elazarl/goproxy"
)

// How long connections without a request are kept: those of apps, and ours to
// targets, of which at most so many per target.
const (
	appIdle         = 2 * time.Minute
	targetIdle      = 90 * time.Second
	maxIdlePerHost  = 32
	maxIdleInAll    = 256
	responseTimeout = 5 * time.Minute // to the first byte; slow apps' requests are no slower than that
)

// web serves plain HTTP (RFC 9110 section 7): net/http's server reads requests
// strictly, goproxy forwards them, and one http.Transport keeps connections to
// targets alive, each of them one flow.
type web struct {
	server    *http.Server
	transport atomic.Pointer[http.Transport] // replaced by forget
	conns     chan net.Conn
	done      chan struct{} // closed by close
	proxy     *goproxy.ProxyHttpServer
	owner     *server
}

// appKey is the context key of the app's *webConn.
type appKey struct{}

func newWeb(ctx context.Context, s *server) *web {
	w := &web{conns: make(chan net.Conn), done: make(chan struct{}), owner: s}
	w.transport.Store(&http.Transport{
		DialContext:           func(dial context.Context, _, address string) (net.Conn, error) { return s.dial(ctx, dial, address) },
		MaxIdleConns:          maxIdleInAll,
		MaxIdleConnsPerHost:   maxIdlePerHost,
		IdleConnTimeout:       targetIdle,
		ResponseHeaderTimeout: responseTimeout,
		DisableCompression:    true, // bytes pass as they are
	})
	w.proxy = goproxy.NewProxyHttpServer()
	w.proxy.Logger = log.New(io.Discard, "", 0)
	w.proxy.Tr = w.transport.Load() // instead of one that asks the environment for a proxy; forward decides
	forward := goproxy.RoundTripperFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Response, error) {
		return w.transport.Load().RoundTrip(r)
	})
	w.proxy.OnRequest().DoFunc(func(r *http.Request, ctx *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		ctx.RoundTripper = forward
		return r, nil
	})
	w.proxy.KeepAcceptEncoding = true
	w.proxy.OnResponse().DoFunc(checkResponse)
	w.proxy.NonproxyHandler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		http.Error(rw, "this is a proxy, not a web site: set it as the HTTP or SOCKS5 proxy of an app", http.StatusBadRequest)
	})
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
	c := &webConn{client: app, closed: make(chan struct{})}
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

// forget lets no request that comes from now on have a connection that is open
// already. One in use closes when its response has ended.
func (w *web) forget() {
	old := w.transport.Load()
	w.transport.Store(old.Clone())
	old.CloseIdleConnections()
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
	*client
	once   sync.Once
	closed chan struct{}
}

// Close tells serve.
func (c *webConn) Close() error {
	err := c.client.TCPConn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// handle serves one request.
func (w *web) handle(ctx context.Context, rw http.ResponseWriter, r *http.Request) {
	w.owner.running.Add(1) // serve of this connection still counts, so Wait cannot have returned
	defer w.owner.running.Done()
	if r.Method == http.MethodConnect {
		w.connect(ctx, rw, r)
		return
	}
	if r.URL.IsAbs() {
		if r.URL.Scheme != "http" {
			http.Error(rw, r.URL.Scheme+":// does not go through an HTTP proxy this way: use CONNECT", http.StatusBadRequest)
			return
		}
		if _, err := targetOfAuthority(r.URL.Host, 80); err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
	}
	out := r.Clone(r.Context())
	out.Close = false // the app's connection ends, not ours to the target
	stripHopByHop(out.Header)
	fw := &flushing{ResponseWriter: rw}
	w.proxy.ServeHTTP(fw, out)
	if fw.hijacked != nil {
		fw.hijacked.Close() // a WebSocket has ended
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
	app := conn.(*webConn).client
	read, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	rest, _ := app.buf.Peek(app.buf.Buffered())
	early := bytes.Join([][]byte{read, rest}, nil)
	tunnel := &client{TCPConn: app.TCPConn, said: func() {}}
	tunnel.buf = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(early), app.TCPConn), max(len(early), 16))
	tunnel.buf.Peek(len(early)) // so that it is what Buffered tells of
	w.owner.serveConnect(ctx, tunnel, r)
}

// stripHopByHop removes what is meant for us only (RFC 9110 section 7.6.1), but
// keeps a WebSocket's upgrade.
func stripHopByHop(h http.Header) {
	upgrade := strings.EqualFold(h.Get("Upgrade"), "websocket")
	for _, value := range h["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			if name = textproto.TrimString(name); !strings.EqualFold(name, "upgrade") {
				h.Del(name)
			}
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Upgrade"} {
		h.Del(name)
	}
	if upgrade {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "websocket")
	}
}

// checkResponse turns a failure into a response that says why, and strips what
// the target said to us only.
func checkResponse(resp *http.Response, ctx *goproxy.ProxyCtx) *http.Response {
	if resp != nil {
		if resp.StatusCode != http.StatusSwitchingProtocols {
			stripHopByHop(resp.Header)
		}
		return resp
	}
	status, text, proxyStatus := http.StatusBadGateway, "no response", "http_protocol_error"
	if ctx.Error != nil {
		text = ctx.Req.URL.Host + ": " + ctx.Error.Error()
	}
	if e, ok := errors.AsType[*refusal](ctx.Error); ok {
		status, text, proxyStatus = e.status(), e.Error(), e.proxyStatus()
	}
	resp = goproxy.NewResponse(ctx.Req, "text/plain; charset=utf-8", status, text+"\n")
	resp.Header.Set("Proxy-Status", "atlantic; error="+proxyStatus)
	return resp
}

// flushing sends every write at once where the length is not known: such a
// response may be a stream of events.
type flushing struct {
	http.ResponseWriter
	hijacked net.Conn // nil until Hijack
}

func (w *flushing) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	if err == nil && w.Header().Get("Content-Length") == "" {
		err = http.NewResponseController(w.ResponseWriter).Flush()
	}
	return n, err
}

// Flush and Hijack are what goproxy asks for.
func (w *flushing) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

func (w *flushing) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.hijacked = conn
	return conn, buffered, err
}
