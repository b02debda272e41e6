package apiserver

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/platform/localsock"
)

// Host is what a caller puts into the Host header (and into http://atlantic/…).
// An empty one will do, and what curl and other clients of unix sockets are
// usually given, "localhost" or "unix"; every other is refused.
const Host = "atlantic"

// refuseBrowser turns away every request that a web page could have sent
// through some bridge to the socket (RELIABILITY.md WB-01, WB-02): ours carry
// none of these headers, and a rebound name cannot say Host: atlantic.
func refuseBrowser(r *http.Request) error {
	for _, name := range []string{"Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode"} {
		if _, ok := r.Header[name]; ok {
			return &api.Error{Code: api.ErrPermission, Message: "requests from browsers are refused",
				Hint: "the local API is for the atlantic command and the tray; leave out the header " + name}
		}
	}
	switch r.Host {
	case Host, "", "localhost", "unix":
	default:
		return &api.Error{Code: api.ErrPermission, Message: "the request is for another host",
			Hint: "use http://" + Host + "/ over the socket"}
	}
	return nil
}

// authorize refuses what the table does not explicitly allow.
func authorize(p localsock.Peer, r route) error {
	if r.access == everybody || r.access == admins && p.Admin {
		return nil
	}
	return &api.Error{Code: api.ErrPermission, Message: "you may not do this: " + who(p) + " may only read the status",
		Hint: localsock.MayWrite()}
}

func who(p localsock.Peer) string {
	if p.Known && p.Name != "" {
		return "user " + p.Name
	}
	return "an unknown user"
}

// conn is a connection together with who the kernel said was at the other end
// when it was made; what that process becomes later changes nothing (IA-02).
type conn struct {
	net.Conn
	peer  localsock.Peer
	close func() error // gives the place back, once
}

func (c *conn) Close() error { return c.close() }

type peerKey struct{}

func connContext(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*conn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}

// peerOf returns the peer of a request; without one, the zero Peer, who may
// do the least.
func peerOf(ctx context.Context) localsock.Peer {
	p, _ := ctx.Value(peerKey{}).(localsock.Peer)
	return p
}

// listener identifies every connection and bounds their number. Users without
// rights have a small budget of their own, so that they cannot lock out those
// who have some.
type listener struct {
	net.Listener
	peerOf         func(net.Conn) (localsock.Peer, error)
	log            *slog.Logger
	admins, guests atomic.Int64
}

// Accept waits for the next connection within the budgets; those beyond are
// closed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := l.peerOf(c)
		if err != nil {
			l.log.Debug("local api: cannot tell who is calling", "err", err)
			peer = localsock.Peer{}
		}
		used, most := &l.guests, int64(maxGuestConns)
		if peer.Admin {
			used, most = &l.admins, maxConns
		}
		if used.Add(1) > most {
			used.Add(-1)
			c.Close()
			continue
		}
		return &conn{Conn: c, peer: peer, close: sync.OnceValue(func() error {
			used.Add(-1)
			return c.Close()
		})}, nil
	}
}
