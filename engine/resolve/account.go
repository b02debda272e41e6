package resolve

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Account is a customer's account at a provider: one [[provider]].
type Account struct {
	Name     string
	Template *Template
	Username string
	Password proxy.Secret
	Vars     map[string]string // country, state, city, zone …; "" counts as absent; errors offer no others than these
	Session  SessionMode
	Pinned   bool     // an identity whose exit has ended is kept until its time is over
	Scheme   string   // "" is the first of the template's gateways
	Host     string   // in place of the template's
	Port     uint16   // in place of the template's
	Ports    []uint16 // of targets that this account may use, in place of the template's; a single 0 is any
	Weight   int
	Attached any // as Gateway's

	// The grammars of user name and password, in place of the template's, for
	// vendors that have no file: "{user}-country-{country}[-session-{session}]".
	UsernameFormat, PasswordFormat string
}

// sessionRule is how a provider's session ids and lives look.
type sessionRule struct {
	chars    string
	length   int
	min, max uint64 // of a number; max 0: it is not one

	life, idle     time.Duration
	unit           string // of {ttl}; "": there is no such place
	ttlMin, ttlMax time.Duration
}

type rawSession struct {
	Chars   string `toml:"chars"` // alnum, lower-alnum, digits
	Length  int    `toml:"length"`
	Min     uint64 `toml:"min"`
	Max     uint64 `toml:"max"`
	Life    string `toml:"life"`
	Idle    string `toml:"idle"`
	TTLUnit string `toml:"ttl_unit"` // minutes, seconds, suffix (10m)
	TTLMin  string `toml:"ttl_min"`
	TTLMax  string `toml:"ttl_max"`
}

const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
)

func (t *Template) checkSession(raw *rawTemplate) error {
	s := raw.Session
	if s == nil {
		return nil
	}
	rule := &sessionRule{length: s.Length, min: s.Min, max: s.Max, unit: s.TTLUnit}
	switch s.Chars {
	case "alnum":
		rule.chars = digits + lower + strings.ToUpper(lower)
	case "lower-alnum":
		rule.chars = digits + lower
	case "digits":
		rule.chars = digits
	default:
		return fmt.Errorf("session: chars %q is none of alnum, lower-alnum, digits", s.Chars)
	}
	switch {
	case s.Max != 0 && (s.Chars != "digits" || s.Max < s.Min || s.Max-s.Min < 1000 || s.Length != 0):
		return errors.New("session: min and max go with digits, without length, and are 1000 apart or more")
	case s.Max == 0 && (s.Length < 4 || s.Length > 64):
		return errors.New("session: length must be 4 to 64")
	}
	switch s.TTLUnit {
	case "", "minutes", "seconds", "suffix":
	default:
		return fmt.Errorf("session: ttl_unit %q is none of minutes, seconds, suffix", s.TTLUnit)
	}
	for _, d := range []struct {
		key, text string
		to        *time.Duration
	}{{"life", s.Life, &rule.life}, {"idle", s.Idle, &rule.idle}, {"ttl_min", s.TTLMin, &rule.ttlMin}, {"ttl_max", s.TTLMax, &rule.ttlMax}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil || v <= 0 {
			return fmt.Errorf("session: %s %q is not a length of time", d.key, d.text)
		}
		*d.to = v
	}
	if rule.unit != "" && (rule.ttlMax == 0 || rule.ttlMin > rule.ttlMax) {
		return errors.New("session: ttl_unit needs ttl_max, not below ttl_min")
	}
	t.session = rule
	return nil
}

// id makes a session id.
func (s *sessionRule) id(rand func() uint64) string {
	if s.max != 0 {
		n, _ := bits.Mul64(rand(), s.max-s.min+1)
		return strconv.FormatUint(s.min+n, 10)
	}
	b := make([]byte, s.length)
	for i := range b {
		n, _ := bits.Mul64(rand(), uint64(len(s.chars)))
		b[i] = s.chars[n]
	}
	return string(b)
}

// ttl writes the whole life that the provider is asked for: never what is left
// of it, which would change the user name.
func (s *sessionRule) ttl(life time.Duration) string {
	switch s.unit {
	case "minutes":
		return strconv.Itoa(int((life + time.Minute - 1) / time.Minute))
	case "seconds":
		return strconv.Itoa(int(life / time.Second))
	case "suffix":
		for _, u := range []struct {
			d    time.Duration
			name string
		}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
			if life%u.d == 0 {
				return strconv.Itoa(int(life/u.d)) + u.name
			}
		}
		return strconv.Itoa(int(life/time.Second)) + "s"
	}
	return ""
}

// ParamError is something that the vendor does not take. It does not quote it.
type ParamError struct {
	Param string // one of Vars, or as the configuration calls it: username, session, username_format …
	Msg   string // which has Param's name in it
	Hint  string // what it takes; may be ""
}

// Error is the message without the hint.
func (e *ParamError) Error() string { return e.Msg }

// Validate says what is wrong with the account, in words for its user: as a
// *ParamError or a *proxy.Error.
func (a *Account) Validate() error {
	_, err := a.compile()
	return err
}

// credentials makes an account's user names and passwords.
type credentials struct {
	user, pass grammar
	values     map[string]string // of the places
	session    *sessionRule      // nil: every flow has the same name
	life       time.Duration     // of an identity; 0: one flow
	gateway    templateGateway

	userExtra, passExtra string // parameters that came with the user name or password and are unknown
}

// compile checks the account against its template.
func (a *Account) compile() (*credentials, error) {
	t := a.Template
	if t == nil {
		return nil, errors.New("provider is unknown")
	}
	c := &credentials{user: t.username, pass: t.password, values: map[string]string{}}
	var err error
	if c.gateway, err = t.gateway(a.Scheme); err != nil {
		return nil, err
	}
	if a.Host != "" {
		if c.gateway.Host, err = proxy.CleanHost(a.Host); err != nil {
			return nil, err
		}
	}
	if a.Port != 0 {
		c.gateway.Port = a.Port
	}
	if c.gateway.Host == "" || c.gateway.Port == 0 {
		return nil, &ParamError{"host", t.Name + " needs host and port", ""}
	}
	if a.Ports != nil {
		c.gateway.Ports = slices.DeleteFunc(slices.Clone(a.Ports), func(p uint16) bool { return p == 0 })
	}
	if a.UsernameFormat != "" {
		if c.user, err = t.format("username_format", a.UsernameFormat); err != nil {
			return nil, &ParamError{"username_format", err.Error(), ""}
		}
	}
	if a.PasswordFormat != "" {
		if c.pass, err = t.format("password_format", a.PasswordFormat); err != nil {
			return nil, &ParamError{"password_format", err.Error(), ""}
		}
	}
	needed, optional := c.places()
	own := *a
	if err := c.setGiven(&own); err != nil {
		return nil, err
	}
	if err := c.setValues(&own, needed, optional); err != nil {
		return nil, err
	}
	if optional["session"] {
		c.session = t.session
	}
	if err := c.setSession(own.Session, t.rotates, optional["ttl"]); err != nil {
		return nil, err
	}
	e := c.mint(func() uint64 { return 1 << 63 })
	return c, proxy.Spec{Scheme: c.gateway.Scheme, Host: c.gateway.Host, Port: c.gateway.Port,
		Username: e.Username, Password: e.Password}.Validate()
}

// places are those that must have a value and those that may.
func (c *credentials) places() (needed, optional map[string]bool) {
	needed, optional = map[string]bool{}, map[string]bool{}
	for _, g := range []grammar{c.user, c.pass} {
		g.each(func(place string, opt bool) {
			if opt {
				optional[place] = true
			} else {
				needed[place] = true
			}
		})
	}
	return needed, optional
}

func (c *credentials) setValues(a *Account, needed, optional map[string]bool) error {
	t := a.Template
	takes := func(name string) bool { return t.vars[name] != nil && (needed[name] || optional[name]) }
	for name, text := range a.Vars {
		if text == "" || takes(name) {
			continue
		}
		if t.vars[name] != nil {
			return &ParamError{name, fmt.Sprintf("%s: user name and password have no place {%s} in their format", t.Name, name), ""}
		}
		e := &ParamError{name, t.Name + " does not take " + clip(name, 32), ""}
		if others := slices.DeleteFunc(slices.Sorted(maps.Keys(a.Vars)), func(n string) bool { return !takes(n) }); len(others) > 0 {
			e.Hint = "it takes: " + strings.Join(others, ", ")
		}
		return e
	}
	for name, v := range t.vars {
		text, err := v.value(name, a.Vars[name])
		if err != nil {
			return err
		}
		c.values[name] = text
	}
	for name, v := range t.vars {
		for _, other := range v.Requires {
			if c.values[name] != "" && c.values[other] == "" {
				return &ParamError{name, fmt.Sprintf("%s needs %s as well", name, other), ""}
			}
		}
	}
	c.values["user"], c.values["password"] = a.Username, a.Password.Reveal()
	for name := range needed {
		if c.values[name] == "" {
			key := strings.Replace(name, "user", "username", 1)
			return &ParamError{key, key + " is missing", ""}
		}
	}
	return nil
}

// setSession checks the mode; withTTL says that the provider is told the life.
func (c *credentials) setSession(m SessionMode, rotates, withTTL bool) error {
	s := c.session
	if s == nil {
		if m.Scope != Shared || m.Life != 0 {
			return &ParamError{"session", "this provider has no sessions, or the format has no {session}", ""}
		}
		return nil
	}
	if m.Scope == PerConnection {
		if rotates {
			c.session = nil // the provider does it, and one name keeps one pool warm
		}
		return nil
	}
	c.life = m.Life
	if c.life == 0 {
		c.life = s.life
	}
	if c.life == 0 {
		c.life = defaultLife
	}
	switch {
	case withTTL && (c.life < s.ttlMin || c.life > s.ttlMax):
		return &ParamError{"session", fmt.Sprintf("a session's life must be %s to %s with this provider", shortDuration(s.ttlMin), shortDuration(s.ttlMax)), ""}
	case withTTL && s.unit == "minutes" && c.life%time.Minute != 0:
		return &ParamError{"session", "a session's life is in whole minutes with this provider", ""}
	case !withTTL && s.life != 0 && c.life > s.life:
		return &ParamError{"session", fmt.Sprintf("a session lives for %s with this provider", shortDuration(s.life)), ""}
	}
	return nil
}

// mint makes an Endpoint that has credentials and nothing else.
func (c *credentials) mint(rand func() uint64) *Endpoint {
	e := &Endpoint{}
	ttl := ""
	if c.session != nil {
		e.Session, e.IdleLimit = c.session.id(rand), c.session.idle
		if c.life != 0 {
			ttl = c.session.ttl(c.life)
		}
	}
	of := func(place string) string {
		switch place {
		case "session":
			return e.Session
		case "ttl":
			return ttl
		}
		return c.values[place]
	}
	e.Username, e.Password = c.user.fill(of)+c.userExtra, proxy.Secret(c.pass.fill(of)+c.passExtra)
	return e
}
