package resolve

import (
	"context"
	"io"
	"time"
)

// SessionMode says how long one identity serves, and for whom.
type SessionMode struct {
	Scope Scope
	Life  time.Duration // how long an identity is used; 0: the template's own
}

// Scope says which flows share an identity.
type Scope uint8

const (
	Shared        Scope = iota // all flows
	PerConnection              // none: each flow has its own
	PerApp
	PerDomain // per registrable domain
)

// ParseSession reads "per-connection", "sticky", "per-app" or "per-domain", the
// last three with a life if wanted: "sticky-10m", "per-app-1h30m". "" is sticky.
func ParseSession(s string) (SessionMode, error) { return SessionMode{}, nil }

// Template is what a provider's file says. It is immutable.
type Template struct {
	Name     string // for people
	CheckURL string // answers with the exit's address
}

// ParseTemplate reads a provider's file, strictly; file stands for it in errors.
func ParseTemplate(file string, data []byte) (*Template, error) { return nil, nil }

// Account is a customer's account at a provider: one [[provider]].
type Account struct {
	Name     string
	Template *Template
	Username string
	Password Secret
	Vars     map[string]string // what the template's grammar takes: country, state, city, zone …; "" counts as absent
	Session  SessionMode
	Pinned   bool     // an identity whose exit has ended is kept until its time is over
	Scheme   string   // "" is the first of the template's gateways
	Host     string   // in place of the template's
	Port     uint16   // in place of the template's
	Ports    []uint16 // targets' ports that this account may use, in place of the template's; one 0 is any
	Weight   int
	Attached any
}

// Validate says what is wrong with the account, in the user's words.
func (a *Account) Validate() error { return nil }

// Fetch reads a list. etag is what the last success gave, "" at first. body is
// nil if notModified.
type Fetch func(ctx context.Context, url, etag string) (body io.ReadCloser, newETag string, notModified bool, err error)

// List is a subscription: proxies, one on a line.
type List struct {
	Name   string
	URL    string        // given to Fetch; may be a path
	Scheme string        // of lines without one; "" is http
	Every  time.Duration // between refreshes; 0 is 1 hour
	Fetch  Fetch         // FetchFile for a path
	Save   func(list []byte) error
	Load   func() ([]byte, error) // the last that was saved
}

// FetchFile is a Fetch of a local file.
func FetchFile(ctx context.Context, path, etag string) (io.ReadCloser, string, bool, error) {
	return nil, "", false, nil
}

// ParseList reads proxies, in any of the usual forms.
func ParseList(data []byte, scheme string) (gateways []Gateway, skipped []LineError, err error) {
	return nil, nil, nil
}

// LineError is a line of a list that is no proxy. It does not quote the line.
type LineError struct {
	Line int // from 1
	Text string
}

// Info is what people may see of an endpoint.
type Info struct {
	ID       uint64
	Name     string // the member's
	Source   string // the account's or list's, "" for a gateway
	Scheme   string
	Address  string    // host:port
	State    string    // ok, open, half-open
	Error    string    // the last failure, "" if the last dial succeeded
	RetryAt  time.Time // when an open circuit is tried again
	Rank     int       // from 1
	Weight   int
	UDP      bool
	Measured bool          // Connect and P95 are known
	Connect  time.Duration // decaying mean
	P95      time.Duration
	Success  float64 // 0 to 1, decaying
	InFlight int     // dials now
	Picks    uint64  // dials begun
	Failures uint64
	Session  string // session id, of one that Sessions or NewSession returns
	App      string // whom the session serves
	Domain   string
	Since    time.Time
	Expires  time.Time
}

// Resolver chooses endpoints. All methods may be called at any time by any
// goroutine.
type Resolver struct{}

type member struct{}

// New makes a Resolver; it does no I/O and starts nothing.
func New(o Options) (*Resolver, error) { return &Resolver{}, nil }

// Run keeps the ranking, the sessions and the lists fresh until ctx ends, and
// returns nil then. It is called once.
func (r *Resolver) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Refresh reads all lists now. If some cannot be read, it says which, and what
// was read of them before stays.
func (r *Resolver) Refresh(ctx context.Context) error { return nil }

// Pick chooses the endpoint for a flow. Errors: ErrEmpty, *Unavailable.
func (r *Resolver) Pick(k Key) (*Endpoint, error) { return nil, ErrEmpty }

// Next chooses another one than those tried, for failover and hedging. Errors:
// ErrNoOther, ErrEmpty, *Unavailable.
func (r *Resolver) Next(k Key, tried []*Endpoint) (*Endpoint, error) { return nil, ErrEmpty }

// Begin says that a dial through e starts; Report must follow.
func (r *Resolver) Begin(e *Endpoint) {}

// Report says how a dial that Begin has told of ended. It does no I/O.
func (r *Resolver) Report(e *Endpoint, o Outcome) {}

// HedgeAfter is how long to wait for e before another is dialled as well: its
// own 95th percentile, 50 ms to 3 s, 1 s as long as it is not known.
func (r *Resolver) HedgeAfter(e *Endpoint) time.Duration { return time.Second }

// React says what to do about a proxy's answer other than success. status is
// HTTP's, or below 100 a SOCKS5 reply; header may be nil. It changes nothing.
func (r *Resolver) React(e *Endpoint, status int, header func(string) string) Reaction {
	return Reaction{}
}

// Carries is nil if e's provider carries flows to host (a name, or an address
// as text) and port, or says why not.
func (e *Endpoint) Carries(host string, port uint16) error { return nil }

// List shows the members, best first.
func (r *Resolver) List() []Info { return nil }

// Sessions shows the identities in use.
func (r *Resolver) Sessions() []Info { return nil }

// NewSession makes a new identity for k (for all, if k is the zero Key), has
// verify dial through it, and only then lets new flows use it. If verify fails,
// the old one stays. verify may be nil. It blocks as long as verify does.
func (r *Resolver) NewSession(ctx context.Context, k Key, verify func(context.Context, *Endpoint) error) (Info, error) {
	return Info{}, ErrEmpty
}
