package api

import "time"

// Endpoint is one proxy of an upstream that has several (a group, a provider, a
// list). Its credentials are not shown.
type Endpoint struct {
	Name      string     `json:"name"`
	Scheme    string     `json:"scheme"`
	Address   string     `json:"address"` // host:port
	State     string     `json:"state"`   // ok, open (left alone for a while), half-open (being tried again)
	Rank      int        `json:"rank"`    // from 1, the best
	ConnectMS float64    `json:"connect_ms"`
	P95MS     float64    `json:"p95_ms"`  // 0 if not measured
	Success   float64    `json:"success"` // 0..1, recent flows count more
	Flows     uint64     `json:"flows"`
	Failures  uint64     `json:"failures,omitempty"`
	Error     string     `json:"error,omitempty"` // of the last flow, if that failed
	RetryAt   *time.Time `json:"retry_at,omitempty"`
	Early     string     `json:"early,omitempty"` // as in Upstream
	Warm      int        `json:"warm,omitempty"`
}

// List is a list of proxies that an upstream's endpoints come from.
type List struct {
	Name         string     `json:"name"`
	Proxies      int        `json:"proxies"`                 // in use
	Skipped      int        `json:"skipped,omitempty"`       // lines that are no proxy, at most 101 are counted
	FirstSkipped string     `json:"first_skipped,omitempty"` // which, and why
	Read         *time.Time `json:"read,omitempty"`          // when it was last read; nil: not since the start
	Error        string     `json:"error,omitempty"`         // why the last reading failed: the proxies before it stay in use
}

// Session is one exit identity that flows use now.
type Session struct {
	Upstream string     `json:"upstream"`         // of Upstreams
	ID       string     `json:"id"`               // what the provider knows it by
	App      string     `json:"app,omitempty"`    // whom it serves, if not all
	Domain   string     `json:"domain,omitempty"` // likewise
	Address  string     `json:"address"`          // of the provider's gateway
	Since    time.Time  `json:"since"`
	Expires  *time.Time `json:"expires,omitempty"` // when flows move to another; nil: not by time
}

// Sessions is the answer of GET /v1/session.
type Sessions struct {
	Schema   int       `json:"schema"`
	Sessions []Session `json:"sessions"`
}

// MadeSession is the answer of POST /v1/session/new.
type MadeSession struct {
	Schema int `json:"schema"`
	Session
}

// NewSession is the body of POST /v1/session/new, whose answer is the
// MadeSession. It is in use once it has been dialled through; if that fails, flows
// stay with the old one.
type NewSession struct {
	Upstream string `json:"upstream,omitempty"` // "": the one in use
	App      string `json:"app,omitempty"`      // for one app, where sessions are per app
	Domain   string `json:"domain,omitempty"`   // for one domain, where they are per domain
}
