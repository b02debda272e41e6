package proxy

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const page = "<!doctype html><title>Welcome</title><h1>Please log in to the hotel network</h1>\n"

// serveTLS lets ALPN choose between HTTP/2 and HTTP/1.1.
func (p *Proxy) serveTLS(raw *net.TCPConn) error {
	config := &tls.Config{Certificates: []tls.Certificate{p.opt.Cert}, NextProtos: []string{"h2", "http/1.1"}}
	if p.is(BadCert) {
		config.Certificates = []tls.Certificate{p.opt.WrongCert}
	}
	if p.opt.HTTP1Only {
		config.NextProtos = []string{"http/1.1"}
	}
	c := tls.Server(raw, config)
	if err := c.Handshake(); err != nil {
		return err
	}
	p.Counters.Handshakes.Add(1)
	if c.ConnectionState().NegotiatedProtocol == "h2" {
		c.SetDeadline(time.Time{})
		var handlers sync.WaitGroup
		//lint:ignore SA1019 net/http serves a listener, not one connection after its handshake
		(&http2.Server{MaxConcurrentStreams: 1000}).ServeConn(c, &http2.ServeConnOpts{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handlers.Add(1)
				defer handlers.Done()
				p.serveHTTP2(w, r)
			}),
		})
		handlers.Wait()
		return nil
	}
	return p.serveHTTP1(c)
}

// serveHTTP1 answers requests on c until one CONNECT succeeds, then relays.
func (p *Proxy) serveHTTP1(c net.Conn) error {
	// http.ReadRequest needs a bufio.Reader, whose rest goes first to the target.
	br := bufio.NewReaderSize(c, 16<<10)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if p.opt.Forwards && req.URL.IsAbs() {
			return p.forward(c, req)
		}
		target, status, text := p.decide(req)
		if target == nil {
			keep := req.Method == http.MethodConnect && status != http.StatusOK && status != http.StatusBadRequest && !req.Close
			if err := answerHTTP1(c, status, text, keep); err != nil || !keep {
				return err
			}
			continue
		}
		if !p.track(target) {
			return nil
		}
		defer p.untrack(target)
		if p.opt.DropEarly {
			br.Discard(br.Buffered())
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
			return err
		}
		p.Counters.Served.Add(1)
		early, _ := br.Peek(br.Buffered())
		return relay(c, early, target)
	}
}

func answerHTTP1(c net.Conn, status int, text string, keep bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Length: %d\r\nContent-Type: text/html\r\n", status, http.StatusText(status), len(text))
	if status == http.StatusProxyAuthRequired {
		b.WriteString("Proxy-Authenticate: Basic realm=\"lab\"\r\n")
	}
	if !keep {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n" + text)
	_, err := io.WriteString(c, b.String())
	return err
}

// forward fetches what was asked for, once, and closes the connection.
func (p *Proxy) forward(c net.Conn, req *http.Request) error {
	p.Counters.Forwarded.Add(1)
	port, err := strconv.ParseUint(cmp.Or(req.URL.Port(), "80"), 10, 16)
	if err != nil {
		return answerHTTP1(c, http.StatusBadRequest, "bad port\n", false)
	}
	target, err := p.dial(req.URL.Hostname(), uint16(port))
	if err != nil {
		return answerHTTP1(c, http.StatusBadGateway, err.Error()+"\n", false)
	}
	if !p.track(target) {
		return nil
	}
	defer p.untrack(target)
	req.Close = true
	if err := req.Write(target); err != nil {
		return err
	}
	_, err = io.Copy(c, target)
	return err
}

// decide checks one request and connects to its target. Without a target,
// status and text are the answer.
func (p *Proxy) decide(r *http.Request) (target net.Conn, status int, text string) {
	p.Counters.Connects.Add(1)
	if d := p.Delay.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	switch {
	case p.is(HTML):
		return nil, http.StatusOK, page
	case p.is(Auth), !p.authorized(r.Header.Get("Proxy-Authorization")):
		return nil, http.StatusProxyAuthRequired, "wrong user or password\n"
	case r.Method != http.MethodConnect:
		return nil, http.StatusMethodNotAllowed, "this proxy speaks CONNECT only\n"
	case p.is(Refuse):
		return nil, http.StatusBadGateway, "refused\n"
	case p.is(Forbid):
		return nil, http.StatusForbidden, "not from here\n"
	}
	host, portText, err := net.SplitHostPort(r.Host)
	port, portErr := strconv.ParseUint(portText, 10, 16)
	if err != nil || portErr != nil {
		return nil, http.StatusBadRequest, "want CONNECT host:port\n"
	}
	target, err = p.dial(host, uint16(port))
	switch {
	case errors.Is(err, errNoName):
		return nil, http.StatusBadGateway, err.Error() + "\n"
	case err != nil:
		return nil, http.StatusServiceUnavailable, err.Error() + "\n"
	}
	return target, http.StatusOK, ""
}

func (p *Proxy) authorized(header string) bool {
	if !p.guarded() {
		return true
	}
	login, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(header, "Basic "))
	user, password, found := strings.Cut(string(login), ":")
	return err == nil && found && p.admits(user, password)
}

// guarded says whether clients have to log in.
func (p *Proxy) guarded() bool { return p.opt.User != "" || p.opt.Admit != nil }

func (p *Proxy) admits(user, password string) bool {
	if p.opt.Admit != nil {
		return p.opt.Admit(user, password)
	}
	return user == p.opt.User && password == p.opt.Password
}

// serveHTTP2 carries one CONNECT stream. The app's END_STREAM becomes a FIN and
// its half-open stream goes on; a target's RST becomes RST_STREAM. net/http
// ends a stream only as a whole, so a target's FIN ends both directions.
func (p *Proxy) serveHTTP2(w http.ResponseWriter, r *http.Request) {
	target, status, text := p.decide(r)
	if target == nil {
		if status == http.StatusProxyAuthRequired {
			w.Header().Set("Proxy-Authenticate", `Basic realm="lab"`)
		}
		w.WriteHeader(status)
		io.WriteString(w, text)
		return
	}
	if !p.track(target) {
		return
	}
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	p.Counters.Served.Add(1)
	up := make(chan struct{})
	go func() { // ends when the stream or the target does; waited for below
		defer close(up)
		if _, err := io.Copy(target, r.Body); err != nil {
			_, _ = io.Copy(io.Discard, r.Body) // ends at once if the client is at fault, else with the answer
			target.Close()
		} else if cw, ok := target.(closeWriter); ok {
			cw.CloseWrite()
		}
	}()
	_, err := io.Copy(flushWriter{w}, target)
	r.Body.Close()
	p.untrack(target)
	<-up
	if err != nil {
		panic(http.ErrAbortHandler) // net/http's way to send RST_STREAM
	}
}

// flushWriter sends each write at once.
type flushWriter struct{ w http.ResponseWriter }

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.w.(http.Flusher).Flush()
	return n, err
}
