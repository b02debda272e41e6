package apiserver

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/internal/fair"
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

// listener identifies every connection and bounds their number: root, the
// others who may write, and everybody else have places of their own. Where all
// of them are taken, whoever has the most loses the connection made first, so
// that no user can keep another one out.
type listener struct {
	net.Listener
	peerOf               func(net.Conn) (localsock.Peer, error)
	log                  *slog.Logger
	root, admins, guests *fair.Places[int] // by uid
}

func newListener(ln net.Listener, peerOf func(net.Conn) (localsock.Peer, error), log *slog.Logger) *listener {
	return &listener{Listener: ln, peerOf: peerOf, log: log,
		root: fair.New[int](maxConns), admins: fair.New[int](maxConns), guests: fair.New[int](maxGuestConns)}
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	peer, err := l.peerOf(c)
	if err != nil {
		l.log.Debug("local api: cannot tell who is calling", "err", err)
		peer = localsock.Peer{UID: unknownUID}
	}
	places := l.guests
	switch {
	case peer.Admin && peer.UID == 0:
		places = l.root
	case peer.Admin:
		places = l.admins
	}
	place := places.Enter(func() int { return peer.UID }, func() { c.Close() })
	return &conn{Conn: c, peer: peer, close: sync.OnceValue(func() error {
		place.Leave()
		return c.Close()
	})}, nil
}

// unknownUID is nobody's.
const unknownUID = -1
