package listener

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"time"
)

// chunkBytes is what is copied of a body at a time.
const chunkBytes = 32 << 10

// forward passes a request on and the response back, as a proxy does that is
// not seen: it adds neither Via nor Forwarded.
//
//	app ─request──► strip ─► Transport ─► a kept connection, or a new flow
//	app ◄─response─ strip ◄──────┘        flushed whenever no more has come
func (w *web) forward(rw http.ResponseWriter, r *http.Request) {
	upgrade := isWebSocket(r.Header)
	interim := &interim{rw: rw, over: !r.ProtoAtLeast(1, 1)} // HTTP/1.0 has none
	out := r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: interim.pass}))
	outgoing(out, upgrade)
	if r.Body != http.NoBody {
		// A target may answer before it has all of the body.
		http.NewResponseController(rw).EnableFullDuplex() // HTTP/1 always can
	}
	resp, err := w.transport(r.Context().Value(appKey{}).(*webConn).app).RoundTrip(out)
	interim.end()
	if err != nil {
		fail(rw, r, err)
		return
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		if !upgrade || !isWebSocket(resp.Header) {
			fail(rw, r, errors.New("the target switched to a protocol that was not asked for"))
			return
		}
		w.switchProtocols(rw, r, resp)
	case resp.StatusCode < 200: // net/http's server panics of what is no status
		fail(rw, r, fmt.Errorf("the target answered with status %d", resp.StatusCode))
	default:
		w.respond(rw, r, resp)
	}
}

// last makes the response the last one on the app's connection if where the next
// request begins is the app's word only: net/http does not tell of broken chunks
// that it has skipped.
func last(rw http.ResponseWriter, r *http.Request) {
	if r.ContentLength < 0 {
		rw.Header()["Connection"] = []string{"close"}
	}
}

// outgoing makes out, which is the app's, what the target shall see. It changes
// the app's own header, which nobody reads after us.
func outgoing(out *http.Request, upgrade bool) {
	out.Host = ""     // that of the URL counts (RFC 9112 section 3.2.2)
	out.Close = false // the app's connection ends, not ours to the target
	trailers := strings.Contains(strings.ToLower(strings.Join(out.Header["Te"], ",")), "trailers")
	strip(out.Header)
	if trailers {
		out.Header["Te"] = []string{"trailers"}
	}
	if upgrade {
		out.Header["Connection"], out.Header["Upgrade"] = []string{"Upgrade"}, []string{"websocket"}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // else Transport would say Go
	}
	if out.Method == http.MethodOptions && out.URL.Path == "" && out.URL.RawQuery == "" {
		out.URL.Path = "*" // RFC 9112 section 3.2.4
	}
}

// strip removes what is meant for the next hop only (RFC 9110 section 7.6.1).
func strip(h http.Header) {
	for _, value := range h["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Transfer-Encoding", "Upgrade"} {
		delete(h, name)
	}
}

// isWebSocket says whether a head asks for, or agrees to, a WebSocket: the only
// upgrade that passes (RFC 6455 section 4).
func isWebSocket(h http.Header) bool {
	if len(h["Upgrade"]) != 1 || !strings.EqualFold(h["Upgrade"][0], "websocket") {
		return false
	}
	for _, value := range h["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(textproto.TrimString(name), "upgrade") {
				return true
			}
		}
	}
	return false
}

// respond gives the target's response to the app.
func (w *web) respond(rw http.ResponseWriter, r *http.Request, resp *http.Response) {
	strip(resp.Header)
	h := rw.Header()
	maps.Copy(h, resp.Header)
	last(rw, r)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // else the server would guess one
	}
	announced := len(resp.Trailer)
	if announced > 0 {
		h["Trailer"] = []string{strings.Join(slices.Sorted(maps.Keys(resp.Trailer)), ", ")}
	}
	rw.WriteHeader(resp.StatusCode)
	if announced > 0 {
		http.NewResponseController(rw).Flush() // so that there are chunks even of nothing
	}
	if err := w.copyBody(rw, resp.Body); err != nil {
		// All that tells an app that the rest is missing is the end of its connection.
		panic(http.ErrAbortHandler)
	}
	for name, values := range resp.Trailer {
		if announced != len(resp.Trailer) { // some came unannounced
			name = http.TrailerPrefix + name
		}
		h[name] = values
	}
}

// copyBody copies, and sends at once what has come: the next read may wait long,
// as in a stream of events.
func (w *web) copyBody(rw http.ResponseWriter, body io.Reader) error {
	b := w.chunks.Get().(*[chunkBytes]byte)
	defer w.chunks.Put(b)
	flush := http.NewResponseController(rw)
	for {
		n, err := body.Read(b[:])
		if n > 0 {
			if _, err := rw.Write(b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n < len(b) {
			if err := flush.Flush(); err != nil {
				return err
			}
		}
	}
}

// switchProtocols carries a WebSocket until both its directions have ended.
func (w *web) switchProtocols(rw http.ResponseWriter, r *http.Request, resp *http.Response) {
	target := resp.Body.(io.ReadWriteCloser) // so says http.Response
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		fail(rw, r, err)
		return
	}
	defer conn.Close()
	app := conn.(*webConn)
	resp.Body = nil
	if err := resp.Write(app); err != nil {
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := io.Copy(target, buffered.Reader); err != nil {
			target.Close()
		} else if c, ok := target.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
	})
	if _, err := io.Copy(app, target); err != nil {
		app.TCPConn.SetLinger(0)
		app.TCPConn.Close()
	} else {
		app.CloseWrite()
		app.SetReadDeadline(time.Now().Add(appIdle)) // it has heard the end
	}
	up.Wait()
}

// fail tells the app why there is no response.
func fail(rw http.ResponseWriter, r *http.Request, err error) {
	status, proxyStatus, text := http.StatusBadGateway, "http_protocol_error", r.URL.Host+": "+err.Error()
	if e, ok := errors.AsType[*refusal](err); ok {
		status, proxyStatus, text = e.status(), e.proxyStatus(), e.Error()
	} else if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		status, proxyStatus = http.StatusGatewayTimeout, "http_response_timeout"
	}
	last(rw, r)
	rw.Header().Set("Proxy-Status", "atlantic; error="+proxyStatus)
	http.Error(rw, text, status)
}

// interim passes responses on that come before the one (RFC 9110 section 15.2).
type interim struct {
	mu   sync.Mutex
	rw   http.ResponseWriter
	over bool // guarded by mu: the rest is not interim any more
}

// pass is called by the transport's goroutine.
func (i *interim) pass(code int, h textproto.MIMEHeader) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.over || code == http.StatusContinue { // which our server says itself when the body is asked for
		return nil
	}
	strip(http.Header(h))
	maps.Copy(i.rw.Header(), http.Header(h))
	i.rw.WriteHeader(code)
	clear(i.rw.Header())
	return nil
}

func (i *interim) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.over = true
}
