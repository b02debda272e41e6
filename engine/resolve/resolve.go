// Package resolve chooses the proxy, and the identity at that proxy, for each
// flow.
//
//	gateways ─┐                                  ┌ Report (connect time, failures)
//	accounts ─┼─► members ─► rank ─► snapshot ◄──┤
//	lists    ─┘    │          ▲         │        └ 30 s tick
//	               │          └─ Run ───┘ atomic pointer
//	               │                    │
//	               └ identities ────────┴─► Pick(Key) ─► *Endpoint
//	                 (static, sticky, per app, per domain, one per connection)
//
// A member is one gateway with one account. An Endpoint is a member and an
// identity at it, usually a session id inside the user name: pointer identity
// is identity. Pick reads one immutable snapshot: it takes no lock, allocates
// nothing, does not look at the clock and takes less than 100 ns. Everything
// that takes time is done by Run; until Run has done it, what was known before
// goes on to be served.
//
// How vendors want to be addressed is data: Template, of which assets/providers
// holds one file for each vendor.
//
// engine, engine/config and engine/upstream import this; it imports engine/proxy.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Key says for what an endpoint is wanted.
type Key struct {
	App    string // path of the process, "" if not known
	Domain string // host name, or address as text
	UDP    bool   // only endpoints that carry UDP
}

// Endpoint is one way to reach a proxy under one identity. Do not copy it. Its
// fields are immutable: its user name and password never change, so that a pool keyed by them, or by
// the pointer, stays warm for the identity's life.
type Endpoint struct {
	ID        uint64 // unique within a Resolver, never used again
	Name      string // for people
	Scheme    string // http, https, socks5
	Host      string // name or address without brackets
	Port      uint16
	Username  string
	Password  proxy.Secret
	Session   string        // the session id in Username or Password; "" if it has none
	Since     time.Time     // when the identity was made
	Expires   time.Time     // when flows move to a new one; zero: never
	Weight    int           // at least 1
	UDP       bool          // carries UDP
	IdleLimit time.Duration // the provider ends the session after so long without traffic; 0: it does not, or none is known
	OneShot   bool          // meant for one flow only: not to be pooled under this user name
	Attached  any           // what Gateway.Attached was

	m       *member      // nil if it came from nowhere
	binding *binding     // who uses it; nil if static or for one flow
	strikes atomic.Int32 // failures in a row to find or reach an exit
}

// Addr is "host:port" as for net.Dial.
func (e *Endpoint) Addr() string { return net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port))) }

// String names the endpoint without credentials.
func (e *Endpoint) String() string { return e.Name + " (" + e.Scheme + "://" + e.Addr() + ")" }

// LogValue keeps credentials out of logs.
func (e *Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

// OutcomeKind says how a dial through an endpoint ended.
type OutcomeKind uint8

const (
	Success      OutcomeKind = iota
	Refused                  // the gateway refused or reset the connection, or is unreachable
	Timeout                  // it did not answer in time
	Auth                     // it does not accept the account: credentials, quota, a parameter
	RateLimited              // it wants fewer connections
	SessionEnded             // the exit behind this identity is gone
	NoExit                   // it found no exit, or failed internally
	Target                   // the endpoint works; the target does not
	Slow                     // it had not answered after Connect, when another dial won
	Canceled                 // the caller gave up: says nothing
	NoUDP                    // the endpoint works, and refuses UDP: it is not picked for that for UDPAgain
)

// Outcome is what became of a dial.
type Outcome struct {
	Kind    OutcomeKind
	Connect time.Duration // until the proxy was ready for the request, 0 if not measured (a warm connection); counts on Success, Target and Slow
	Status  int           // the proxy's, if it answered
	Text    string        // the error, for List
}

// Gateway is a proxy with fixed credentials.
type Gateway struct {
	Name     string // "" is scheme://host:port
	Scheme   string // http, https, socks5
	Host     string
	Port     uint16
	Username string
	Password proxy.Secret
	Weight   int // 0 is 1
	UDP      bool
	Attached any // the owner's own, e.g. TLS settings; never looked at
}

// Source is where members come from: exactly one field is set.
type Source struct {
	Gateways []Gateway
	Account  *Account
	List     *List
}

// Policy says which member a flow goes to.
type Policy uint8

const (
	Latency  Policy = iota // the best by connect time, success and load; changes only for a clear gain
	Failover               // the first that works, in the order given
	Weighted               // at random, in proportion to weight and success
	Sticky                 // always the same for the same app and registrable domain
)

// ParsePolicy reads latency (or ""), failover, weighted, sticky.
func ParsePolicy(s string) (Policy, error) {
	for p, name := range policyNames {
		if s == name {
			return Policy(p), nil
		}
	}
	if s == "" {
		return Latency, nil
	}
	return 0, errors.New("policy is none of latency, failover, weighted, sticky")
}

func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return "unknown"
}

var policyNames = [...]string{"latency", "failover", "weighted", "sticky"}

// Options are what a Resolver is made of.
type Options struct {
	Name    string
	Policy  Policy
	Sources []Source
	// Probe connects to the endpoint's gateway, reports nothing, and returns
	// how long it took until the proxy was ready. Run calls it in the background
	// for members that have not been measured for a while and for those whose
	// circuit may close again. Nil: only flows measure, and one flow at a time
	// tries a circuit.
	Probe func(ctx context.Context, e *Endpoint) (time.Duration, error)
	// Resting says that nobody needs an endpoint now: Run then probes none. Nil:
	// somebody always does.
	Resting func() bool
	// Open says whether a flow is open through an endpoint of that name. Where a
	// vendor ends identities that are idle, those without one are renewed. Nil:
	// they are not.
	Open func(name string) bool
	// Retired is told about endpoints that will not be picked any more; flows
	// that use them go on. It must not block or call the Resolver. May be nil.
	Retired func(*Endpoint)
	Log     *slog.Logger  // nil: silent
	Rand    func() uint64 // for tests; nil is math/rand/v2. Any goroutine calls it.
}

// spec is what the gateway's validity is decided by.
func (g *Gateway) spec() proxy.Spec {
	return proxy.Spec{Scheme: g.Scheme, Host: g.Host, Port: g.Port, Username: g.Username, Password: g.Password}
}

// Errors of Pick and Next; Unavailable is one more.
var (
	ErrEmpty   = errors.New("no endpoints")             // nothing is configured, or no list has been read yet
	ErrNoOther = errors.New("no other endpoint to try") // all have been tried
	ErrNoUDP   = errors.New("no endpoint carries UDP")
)

// Unavailable says that endpoints exist, and that none should be tried now.
type Unavailable struct {
	Name  string      // the Resolver's
	Cause OutcomeKind // Auth or RateLimited
	Until time.Time   // when the first is tried again
	Text  string      // what the provider said
}

func (u *Unavailable) Error() string {
	return fmt.Sprintf("group %q: no endpoint is usable: %s", u.Name, u.Text)
}
