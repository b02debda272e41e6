package listener

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

const (
	// watchAfter is when an app whose request is not answered yet is watched, so
	// that nobody works on for one that has gone. Most answers come before.
	watchAfter = 100 * time.Millisecond
	// orphanCheck is how often an app that has closed its side is looked at.
	orphanCheck = time.Second
	// keptBytes is how much memory for heads an idle connection holds on to: more
	// than most need. Hostile ones need megabytes: a field of 3 bytes takes 56.
	keptBytes = 32 << 10
)

// serveHTTP carries an HTTP connection (RFC 9110 section 7) until it ends:
// tunnels are connect.go's, all else is forward.go's.
func (s *server) serveHTTP(ctx context.Context, app *client) {
	c := &appConn{client: app, gone: make(chan struct{})}
	defer c.end()
	for first := true; ; first = false {
		err := c.next(first)
		if err == nil && c.isA(http.MethodConnect) {
			s.serveConnect(ctx, app, &c.request)
			return
		}
		if err == nil {
			err = c.locate()
		}
		if err != nil {
			c.refuseRequest(err)
			return
		}
		if again := c.forward(ctx); !again {
			return
		}
	}
}

// appConn is an app's connection that plain HTTP requests come by.
type appConn struct {
	*client
	request
	who   sharer                // known once asked
	asked bool                  // who is known
	bound map[targetKey]*target // connections that are this app connection's own, idle
	out   []byte                // the request's head, and body if it is here, as the target shall see it

	// Of the exchange under way; see forward.go.
	resp       response
	in         []byte        // the response's head as the app shall see it
	body       body          // the request's, read by follow
	answered   bool          // the response's head has left
	final      bool          // and said that no other request may follow
	untilClose bool          // nothing but the connection's end tells where the response ends
	uploaded   atomic.Bool   // the target has the whole request
	gone       chan struct{} // closed by leave

	following sync.WaitGroup // follow or watch
	timer     *time.Timer    // begins watch; nil before the first request
	waiting   bool           // timer is set, or has run

	mu    sync.Mutex
	using *target       // guarded by mu; what leave closes
	left  error         // guarded by mu; why the app's side has ended the exchange
	over  chan struct{} // guarded by mu; closed by unfollow; nil if nobody waits for it
	done  bool          // guarded by mu; the exchange has ended
}

// next reads a request's head. Only the first one may take no longer than
// flow.SayWithin to begin.
func (c *appConn) next(first bool) error {
	if !first {
		c.release()
		c.wait()
		c.SetReadDeadline(time.Now().Add(flow.AppIdle))
		if _, err := c.buf.Peek(1); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(flow.SayWithin))
	}
	if err := c.head.read(c.buf, maxHeaderBytes); err != nil {
		if errors.Is(err, errHeadTooLong) {
			err = &badRequest{http.StatusRequestHeaderFieldsTooLarge, "the head of a request is longer than 64 KiB"}
		}
		return err
	}
	c.said()
	c.SetReadDeadline(time.Time{})
	return c.understand()
}

// release frees what the last exchange needed, if that was much.
func (c *appConn) release() {
	if c.head.size()+c.resp.size()+c.body.trailer.size()+cap(c.out)+cap(c.in) > keptBytes {
		c.request, c.resp, c.body, c.out, c.in = request{}, response{}, body{}, nil, nil
	}
}

// refuseRequest answers what is not understood; an app that has not said a whole
// head is told nothing.
func (c *appConn) refuseRequest(err error) {
	var bad *badRequest
	if errors.As(err, &bad) {
		c.refuse(errorPage(bad.status, "", bad.text))
		return
	}
	c.Close()
}

// end frees what the connection holds.
func (c *appConn) end() {
	for _, t := range c.bound {
		t.Close()
	}
}

// sharer finds who the app's connections to targets may be shared with.
func (c *appConn) sharer() sharer {
	if !c.asked {
		c.asked = true
		o := &c.s.opts
		if o.App != nil {
			c.who.app = o.App(c.addr(), c.door())
		}
		if o.User != nil {
			user, ok := o.User(flow.TCP, c.addr(), c.door())
			if c.who.user = user; !ok {
				c.who.alone = c
			}
		}
	}
	return c.who
}

// takeTarget returns a connection that is open, nil if there is none.
func (c *appConn) takeTarget(key targetKey) *target {
	if t := c.bound[key]; t != nil {
		delete(c.bound, key)
		if t.of == c.s.targets.now() && t.wake() {
			return t
		}
		t.Close()
	}
	return c.s.targets.take(key)
}

// keepTarget keeps a connection for further requests.
func (c *appConn) keepTarget(t *target) {
	t.used = true
	if t.body.trailer.size() > keptBytes {
		t.body = body{}
	}
	if !t.bound {
		c.s.targets.add(t)
		return
	}
	if c.bound == nil {
		c.bound = make(map[targetKey]*target)
	}
	for key, old := range c.bound {
		if key == t.key || len(c.bound) >= maxBound {
			old.Close()
			delete(c.bound, key)
		}
	}
	c.bound[t.key] = t
}

// errAppGone ends what is done for an app that has gone.
var errAppGone = errors.New("the app has gone")

// failure is the answer to a request that got none from its target.
func failure(host string, err error) []byte {
	status, proxyStatus, text := http.StatusBadGateway, "http_protocol_error", host+": "+err.Error()
	var refused *refusal
	var bad *badRequest
	switch {
	case errors.As(err, &refused):
		status, proxyStatus, text = refused.status(), refused.proxyStatus(), refused.Error()
	case errors.As(err, &bad):
		status, proxyStatus, text = bad.status, "", bad.text
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		text = host + ": the target closed the connection before it answered"
	}
	return errorPage(status, proxyStatus, text)
}
