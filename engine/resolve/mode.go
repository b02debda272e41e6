package resolve

import (
	"errors"
	"strings"
	"time"
)

// SessionMode says for whom one identity serves, and how long.
type SessionMode struct {
	Scope Scope
	Life  time.Duration // 0: the template's own
}

// Scope says which flows share an identity.
type Scope uint8

const (
	Shared        Scope = iota // all flows
	PerConnection              // none: each flow has its own
	PerApp                     // those of one process path
	PerDomain                  // those to one registrable domain
)

var scopeNames = [...]string{"sticky", "per-connection", "per-app", "per-domain"}

// The lives that ParseSession takes; a template may allow less.
const (
	minLife = time.Minute
	maxLife = 7 * 24 * time.Hour
)

// ParseSession reads "per-connection", "sticky", "per-app" or "per-domain", the
// last three with a life if wanted: "sticky-10m", "per-app-1h30m". "" is sticky.
func ParseSession(s string) (SessionMode, error) {
	if s == "" {
		return SessionMode{}, nil
	}
	for scope, name := range scopeNames {
		rest, ok := strings.CutPrefix(s, name)
		if !ok || rest != "" && (rest[0] != '-' || Scope(scope) == PerConnection) {
			continue
		}
		m := SessionMode{Scope: Scope(scope)}
		if rest != "" {
			life, err := time.ParseDuration(rest[1:])
			if err != nil || life < minLife || life > maxLife || life%time.Second != 0 {
				return m, errors.New("a session's life must be 1m to 168h, in whole seconds")
			}
			m.Life = life
		}
		return m, nil
	}
	return SessionMode{}, errors.New("this is no value of session: use per-connection, sticky-10m, per-app-10m or per-domain-10m")
}

// String is what ParseSession reads.
func (m SessionMode) String() string {
	if m.Life == 0 {
		return scopeNames[m.Scope]
	}
	return scopeNames[m.Scope] + "-" + shortDuration(m.Life)
}

// shortDuration is d without the units that are zero: 10m, 1h, 1h30m.
func shortDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = text[:len(text)-2]
	}
	if strings.HasSuffix(text, "h0m") {
		text = text[:len(text)-2]
	}
	return text
}
