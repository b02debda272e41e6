// Package client is the typed client of the local API.
//
//	tray, CLI ──► Client ──► localsock.Dial ──► the service
//	                            └ refuses a server that is neither root's nor ours
//
// The zero Client talks to the service at the default place:
//
//	st, err := new(client.Client).Status(ctx)
//
// Every call opens a connection of its own, so that a Client has nothing to
// close and a restart of the service is not noticed. What the service refuses
// comes back as an *api.Error; that nothing answers, as ErrAbsent; that
// somebody else answers, as localsock.ErrForeignServer.
//
// It may import engine/api and platform/localsock only; app/cli, app/tray and
// app/dashboard import it.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// ErrAbsent: no service listens on the socket. It is wrapped with the path.
var ErrAbsent = errors.New("the service is not running")

const (
	callTimeout    = 10 * time.Second // of one call, unless ctx ends before
	prefsTimeout   = 60 * time.Second // of SetPrefs
	maxAnswerBytes = 64 << 20         // 100,000 flows fit
	maxEventBytes  = 1 << 20
)

// Client calls the local API. The zero value is ready; a Client may be copied
// and used by many goroutines.
type Client struct {
	Socket string // path of the socket or pipe; "" means localsock.ClientPath()
	// Dial connects to the socket; nil means localsock.Dial.
	Dial func(ctx context.Context, path string) (net.Conn, error)
}

// Status returns one snapshot of the service.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	return get[api.Status](ctx, c, "/v1/status")
}

// SetPrefs changes what the user wants, and returns the status once the change
// was accepted; Watch tells what comes of it. It may take as long as a look at
// the new upstream does (a minute at most).
func (c *Client) SetPrefs(ctx context.Context, p api.Prefs) (api.Status, error) {
	return call[api.Status](ctx, c, prefsTimeout, http.MethodPatch, "/v1/prefs", p)
}

// Upstreams returns what traffic can leave through.
func (c *Client) Upstreams(ctx context.Context) (api.Upstreams, error) {
	return get[api.Upstreams](ctx, c, "/v1/upstreams")
}

// Sessions returns the exit identities in use.
func (c *Client) Sessions(ctx context.Context) (api.Sessions, error) {
	return get[api.Sessions](ctx, c, "/v1/session")
}

// NewSession takes a new exit identity; it is in use when this returns. It may
// take as long as a look at it does (a minute at most).
func (c *Client) NewSession(ctx context.Context, s api.NewSession) (api.MadeSession, error) {
	return call[api.MadeSession](ctx, c, prefsTimeout, http.MethodPost, "/v1/session/new", s)
}

// Flows returns the live flows.
func (c *Client) Flows(ctx context.Context) (api.FlowList, error) {
	return get[api.FlowList](ctx, c, "/v1/flows")
}

// KillFlow ends one flow.
func (c *Client) KillFlow(ctx context.Context, id uint64) error {
	_, err := call[struct{}](ctx, c, callTimeout, http.MethodDelete, "/v1/flows/"+strconv.FormatUint(id, 10), nil)
	return err
}

// Why tells what would happen to a flow to host.
func (c *Client) Why(ctx context.Context, host string) (api.Why, error) {
	return get[api.Why](ctx, c, "/v1/why?host="+url.QueryEscape(host))
}

// Config returns the configuration in force, secrets redacted.
func (c *Client) Config(ctx context.Context) (api.Config, error) {
	return get[api.Config](ctx, c, "/v1/config")
}

// Metrics returns the counters as Prometheus text.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/v1/metrics", nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	return string(text), err
}

// Shutdown asks the service to restore the machine and end.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := call[struct{}](ctx, c, callTimeout, http.MethodPost, "/v1/shutdown", nil)
	return err
}

// Watch calls fn for each event, the first being a full status, until ctx ends,
// fn returns an error, or the stream ends; it returns that error, and io.EOF
// when the service ended the stream (it stopped, or fn was too slow). Coming
// back is the caller's business.
func (c *Client) Watch(ctx context.Context, fn func(api.Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/watch", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEventBytes)
	for lines.Scan() {
		var ev api.Event
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		if err := fn(ev); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("watch the service: %w", err)
	}
	return io.EOF
}

func get[T any](ctx context.Context, c *Client, target string) (T, error) {
	return call[T](ctx, c, callTimeout, http.MethodGet, target, nil)
}

// call makes one call and decodes its answer; body may be nil.
func call[T any](ctx context.Context, c *Client, limit time.Duration, method, target string, body any) (answer T, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := c.do(ctx, method, target, body)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerBytes)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("read the service's answer to %s %s: %w", method, target, err)
	}
	return answer, nil
}

// do sends one request over a connection of its own, which ends with the
// answer's body. An answer other than 2xx becomes an error.
func (c *Client) do(ctx context.Context, method, target string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://atlantic"+target, content)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	path, dial := c.Socket, c.Dial
	if path == "" {
		path = localsock.ClientPath()
	}
	if dial == nil {
		dial = localsock.Dial
	}
	conn, err := dial(ctx, path)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (nothing listens on %s)", ErrAbsent, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, &api.Error{Code: api.ErrPermission, Message: "you may not open " + path,
			Hint: localsock.MayWrite()}
	}
	return nil, err
}

// refusal reads what the service says about a call it did not carry out.
func refusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var e api.Error
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if err != nil || e.Message == "" {
		return &api.Error{Code: api.ErrProtocol, Message: "what listens on the socket does not speak our API: it answered " + resp.Status,
			Hint: "is --socket or ATLANTIC_SOCKET right?"}
	}
	return &e
}
