// Package api is the vocabulary of the local API: what the service says about
// itself and what it can be told, as JSON. The service (engine/apiserver), the
// client (app/client), the CLI and the tray all speak it, so a field means the
// same everywhere. It is a leaf: types and constants, no behaviour.
//
// Times are RFC 3339 in UTC, durations are milliseconds (fields end in _ms),
// sizes are bytes. Fields are only ever added; Schema changes if one must be
// removed or change its meaning.
package api

import (
	"net/netip"
	"time"
)

// Schema is the version of every JSON document that the CLI prints.
const Schema = 1

// Version is the version of the local API, in status and in the path (/v1/).
const Version = 1

// State is where the engine's machine stands (see engine/machine.go).
type State string

const (
	Off      State = "off"
	Starting State = "starting"
	On       State = "on"
	Stopping State = "stopping"
	// Blocked: nothing of ours lets traffic out, because it could only leave
	// unprotected, or not at all; Status.Cause says why and Status.Hint what to
	// do. Whether traffic gets past us is in Status.Protect.
	Blocked State = "blocked"
)

// Status is one snapshot of the service.
type Status struct {
	Schema   int       `json:"schema"`
	State    State     `json:"state"`
	Cause    string    `json:"cause"`          // why Blocked, or why the last attempt to start failed; "" if all is well
	Code     ErrorCode `json:"code,omitempty"` // what kind of failure Cause tells of
	Hint     string    `json:"hint,omitempty"` // what the user can do about Cause
	Since    time.Time `json:"since"`          // when State was entered
	Upstream Upstream  `json:"upstream"`       // the one in use (or that would be, if Off)
	Latency  Latency   `json:"latency_ms"`
	Reuse    float64   `json:"reuse"` // 0..1: of the connections that an upstream proxy carried, those without a new TCP or TLS handshake in their path
	Flows    Flows     `json:"flows"`
	Bytes    Bytes     `json:"bytes"`
	UDP      UDP       `json:"udp"`
	Protect  Protect   `json:"protect"`
	TUN      TUN       `json:"tun"`
	Networks []Network `json:"networks,omitempty"` // of this machine's other interfaces, which keep their traffic
	Proxy    string    `json:"proxy"`              // address of the local HTTP and SOCKS5 proxy; "" if it is not listening
	DNS      DNS       `json:"dns"`
	Warnings []string  `json:"warnings,omitempty"` // things that work less well than they could, for people
	// Unkept is why what was asked for last is in force now and will be forgotten
	// at the next start; "" if it is kept.
	Unkept  string   `json:"unkept,omitempty"`
	Version Versions `json:"version"`
}

// Upstream is one upstream proxy, as the outside may see it: no credentials.
type Upstream struct {
	Name      string  `json:"name"`
	Scheme    string  `json:"scheme"`            // direct, http, https, socks5; group if it has endpoints that are not all at one address
	Address   string  `json:"address,omitempty"` // "" of direct and group
	RTTms     float64 `json:"rtt_ms"`            // of the last connection set up to it; 0 if unknown
	EarlyData bool    `json:"early_data"`        // the app's first bytes leave before the proxy has answered
	// Early is what is known about early data: "unknown" (no flow has tried it
	// yet), "carries", "refuses"; "" where it does not apply (direct).
	Early     string `json:"early,omitempty"`
	UDP       bool   `json:"udp"`
	InUse     bool   `json:"in_use,omitempty"`
	Failures  int    `json:"failures,omitempty"` // in a row, now
	Error     string `json:"error,omitempty"`    // of the last failure, while Failures > 0
	Flows     uint64 `json:"flows,omitempty"`    // carried since the start
	Warm      int    `json:"warm,omitempty"`     // connections made ahead that wait now
	WarmHits  uint64 `json:"warm_hits,omitempty"`
	EarlyHits uint64 `json:"early_hits,omitempty"`
	Sessions  int    `json:"sessions,omitempty"` // of HTTP/2, now
	// Endpoints are its proxies, best first, if it has several.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// Lists are those that endpoints come from.
	Lists []List `json:"lists,omitempty"`
}

// Percentiles in milliseconds; zero if nothing was measured.
type Percentiles struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

type Latency struct {
	// Added is what the product itself adds to a new flow: from the app's
	// request in our hands to the moment the dial to the upstream starts.
	Added Percentiles `json:"added"`
	// FirstByte is from the app's request to the first byte back from the target.
	FirstByte Percentiles `json:"first_byte"`
	// Phases are the steps of a flow's set-up, each over the flows in whose
	// path it was.
	Phases LatencyPhases `json:"phases"`
}

type LatencyPhases struct {
	Rules   Percentiles `json:"rules"`
	Pick    Percentiles `json:"pick"`    // the choice of an endpoint, where there are several
	Wait    Percentiles `json:"wait"`    // for a connection that was being made ahead
	Dial    Percentiles `json:"dial"`    // TCP to the upstream (or target, if direct)
	TLS     Percentiles `json:"tls"`     // TLS to the upstream
	Connect Percentiles `json:"connect"` // the proxy handshake
}

type Flows struct {
	Open    int64  `json:"open"`
	Total   uint64 `json:"total"`
	Refused uint64 `json:"refused"` // the upstream or the target did not take them
	Blocked uint64 `json:"blocked"` // by a rule, by the UDP policy or by state Blocked
	Carried uint64 `json:"carried"` // connections that an upstream proxy has taken
	Reused  uint64 `json:"reused"`  // of these, without a new TCP or TLS handshake in their path
	Warm    uint64 `json:"warm"`    // on a connection that was made ahead
	Early   uint64 `json:"early"`   // whose first bytes left together with the request to the proxy
}

// Bytes of payload, as apps see them.
type Bytes struct {
	Up         uint64 `json:"up"`
	Down       uint64 `json:"down"`
	DirectUp   uint64 `json:"direct_up"`
	DirectDown uint64 `json:"direct_down"`
}

type UDP struct {
	Blocked uint64 `json:"blocked"` // datagrams that were not sent because the upstream carries no UDP
}

type Protect struct {
	KillSwitch string `json:"kill_switch"` // auto, off
	Blocking   bool   `json:"blocking"`    // all traffic is being held back now, as the system's own routing says
	// Effect is what becomes of traffic while it is Off or Blocked, for people:
	// measured where it can be, not concluded from the state.
	Effect string `json:"effect,omitempty"`
}

type TUN struct {
	Name string `json:"name"` // "" if there is no TUN
	Path string `json:"path"` // kernel, userspace; "" if there is no TUN
	// Carrier is how new TCP connections come on the kernel path.
	Carrier string `json:"carrier,omitempty"` // nat, redirect
	MTU     int    `json:"mtu,omitempty"`
	IPv6    bool   `json:"ipv6"`
}

// Network is one that this machine reaches by an interface of its own, beside the
// one to the Internet: another tunnel, the bridge of containers, a second LAN.
type Network struct {
	Interface string         `json:"interface"`
	Prefixes  []netip.Prefix `json:"prefixes"`
}

// Values of TUN.Carrier.
const (
	CarrierNAT      = "nat"      // translated in the TUN
	CarrierRedirect = "redirect" // past the TUN, where the upstream carries early data
)

type DNS struct {
	Mode string `json:"mode"` // fake-ip, real; "" if DNS is not taken over
	How  string `json:"how,omitempty"`
}

type Versions struct {
	Service string `json:"service"`
	API     int    `json:"api"`
}

// Prefs is the body of PATCH /v1/prefs; nil fields stay as they are. The
// answer is the Status after the change has been accepted (not completed).
type Prefs struct {
	On *bool `json:"on,omitempty"`
	// Upstream is a name from the configuration, "auto", or a URL
	// (scheme://user:password@host:port).
	Upstream *string `json:"upstream,omitempty"`
}

// Event is one line of GET /v1/watch: the first is a full Status, and so is
// every later one whose Type is "status"; "error" carries what just went wrong.
type Event struct {
	Type   string    `json:"type"` // status, error
	Time   time.Time `json:"time"`
	Status *Status   `json:"status,omitempty"`
	Error  *Error    `json:"error,omitempty"`
}

// Upstreams is the answer of GET /v1/upstreams.
type Upstreams struct {
	Schema    int        `json:"schema"`
	Choice    string     `json:"choice"` // "auto" or a name
	Upstreams []Upstream `json:"upstreams"`
}

// Flow is one live flow in GET /v1/flows.
type Flow struct {
	ID       uint64    `json:"id"`
	Network  string    `json:"network"` // tcp, udp
	Inbound  string    `json:"inbound"` // tun, http, socks5
	Source   string    `json:"source"`
	Target   string    `json:"target"` // host:port
	Process  string    `json:"process,omitempty"`
	Via      string    `json:"via"`                // upstream name, "direct"
	Endpoint string    `json:"endpoint,omitempty"` // of an upstream that has several
	Rule     string    `json:"rule"`               // which rule decided
	Start    time.Time `json:"start"`
	Up       uint64    `json:"up"`
	Down     uint64    `json:"down"`
	Reused   bool      `json:"reused"`
	Warm     bool      `json:"warm"`  // on a connection that was made ahead
	Early    bool      `json:"early"` // its first bytes left before the proxy had answered
	Phases   Phases    `json:"phases_ms"`
	FirstErr string    `json:"error,omitempty"`
}

// Phases are the milliseconds each step of a flow's set-up took; 0 if it did
// not happen.
type Phases struct {
	Rules     float64 `json:"rules"`
	Pick      float64 `json:"pick"`    // the choice of an endpoint
	Wait      float64 `json:"wait"`    // for a connection that was being made ahead
	Dial      float64 `json:"dial"`    // TCP to the upstream (or target, if direct)
	TLS       float64 `json:"tls"`     // TLS to the upstream
	Connect   float64 `json:"connect"` // the proxy handshake
	FirstByte float64 `json:"first_byte"`
}

// FlowList is the answer of GET /v1/flows.
type FlowList struct {
	Schema int    `json:"schema"`
	Flows  []Flow `json:"flows"`
}

// Why is the answer of GET /v1/why?host=: what would happen to a flow there.
type Why struct {
	Schema   int    `json:"schema"`
	Host     string `json:"host"`
	Verdict  string `json:"verdict"` // auto, direct, block, or an upstream's name
	Rule     string `json:"rule"`
	Upstream string `json:"upstream"` // that would carry it; "" if blocked
	DNS      string `json:"dns"`      // how the name is resolved, for people
	UDP      string `json:"udp"`      // what would happen to UDP there
	// LastError is why the last flow there failed, "" if none did.
	LastError string `json:"last_error,omitempty"`
	// Programs are those that some rule names and that go another way.
	Programs []WhyProgram `json:"programs,omitempty"`
}

// WhyProgram is Why for one program.
type WhyProgram struct {
	Program  string `json:"program"` // as the rule has it
	Verdict  string `json:"verdict"`
	Rule     string `json:"rule"`
	Upstream string `json:"upstream"`
	UDP      string `json:"udp"`
}

// Config is the answer of GET /v1/config: the configuration in force.
type Config struct {
	Schema int    `json:"schema"`
	Path   string `json:"path"` // "" if there is no file
	TOML   string `json:"toml"` // complete, defaults included, secrets redacted
}

// ErrorCode is what kind of thing went wrong, for programs.
type ErrorCode string

const (
	ErrInternal     ErrorCode = "internal"
	ErrBadRequest   ErrorCode = "bad_request" // the caller's mistake
	ErrNotFound     ErrorCode = "not_found"   // no such call, flow, upstream
	ErrUnsupported  ErrorCode = "unsupported" // a later version has it
	ErrPermission   ErrorCode = "permission"  // the caller may not do this
	ErrConfig       ErrorCode = "config"      // the configuration is wrong
	ErrUnknownName  ErrorCode = "unknown_upstream"
	ErrSystem       ErrorCode = "system"       // the operating system refused: no root, no /dev/net/tun …
	ErrNotRestored  ErrorCode = "not_restored" // something of ours is left on the machine
	ErrPortInUse    ErrorCode = "port_in_use"
	ErrRefused      ErrorCode = "upstream_refused"     // TCP reset or refused
	ErrUnreachable  ErrorCode = "upstream_unreachable" // no route, name does not resolve
	ErrTimeout      ErrorCode = "upstream_timeout"
	ErrAuth         ErrorCode = "upstream_auth"     // 407, SOCKS5 status 01, no acceptable method
	ErrTLS          ErrorCode = "upstream_tls"      // certificate or handshake
	ErrProtocol     ErrorCode = "upstream_protocol" // it answered something that is not a proxy's answer
	ErrTargetFailed ErrorCode = "target_failed"     // the proxy works; the target does not
	ErrState        ErrorCode = "state"             // intent or journal could not be read

	// Said by the CLI, not by the service.
	ErrNoService    ErrorCode = "no_service" // nothing answers on the socket, or it is not installed
	ErrNotConnected ErrorCode = "not_connected"
)

// Error is what a failed call answers, and what a user is shown: what went
// wrong, where, and what to do.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
	Hint    string    `json:"hint"` // "" if there is nothing to do about it
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + " (" + e.Hint + ")"
}
