package resolve

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// maxTemplateBytes bounds a provider's file.
const maxTemplateBytes = 64 << 10

// Template is what a provider's file says. It is immutable.
//
//	name, docs, check_url        for people; what tells the exit's address
//	username, password           grammars: places {user} {password} {session} {ttl} and the vars
//	trim_user                    what a user name is often given with, and the grammar has
//	rotates                      without a session id, each connection has another exit
//	[[gateway]]                  scheme, host, port, udp; ports and names_only limit targets
//	[vars.country]               pattern, case, rename, default, requires, hint
//	[session]                    chars and length, or min and max; life, idle; ttl_unit, ttl_min, ttl_max
//	[errors] headers             which hold the vendor's words
//	[[errors.map]]               status, contains ⇒ action, meaning, hint
type Template struct {
	Name     string // for people
	Docs     string // where its facts were read
	CheckURL string // answers with the exit's address; may be ""

	username, password grammar
	trimUser           string
	rotates            bool
	gateways           []templateGateway
	vars               map[string]*variable
	session            *sessionRule // nil: the provider has no sessions
	headers            []string
	errors             []errorRule
}

type templateGateway struct {
	Scheme    string   `toml:"scheme"`
	Host      string   `toml:"host"` // "": the account gives it
	Port      uint16   `toml:"port"`
	UDP       bool     `toml:"udp"`
	Ports     []uint16 `toml:"ports"`      // of targets; none: any
	NamesOnly bool     `toml:"names_only"` // targets must be names, not addresses
}

// variable is what may stand at a place of the grammar.
type variable struct {
	Pattern  string            `toml:"pattern"` // of the value, after case and rename
	Case     string            `toml:"case"`    // lower, upper or "": as given
	Rename   map[string]string `toml:"rename"`  // what the vendor calls it
	Default  string            `toml:"default"`
	Requires []string          `toml:"requires"` // places that need a value as well
	Hint     string            `toml:"hint"`

	re *regexp.Regexp
}

type rawTemplate struct {
	Name     string               `toml:"name"`
	Docs     string               `toml:"docs"`
	CheckURL string               `toml:"check_url"`
	Username string               `toml:"username"`
	Password string               `toml:"password"`
	TrimUser string               `toml:"trim_user"`
	Rotates  bool                 `toml:"rotates"`
	Gateway  []templateGateway    `toml:"gateway"`
	Vars     map[string]*variable `toml:"vars"`
	Session  *rawSession          `toml:"session"`
	Errors   struct {
		Headers []string    `toml:"headers"`
		Map     []errorRule `toml:"map"`
	} `toml:"errors"`
}

// ParseTemplate reads a provider's file. It is strict: an unknown key is an
// error. file stands for the file in errors, which have line and column where
// the text itself is at fault.
func ParseTemplate(file string, data []byte) (*Template, error) {
	if len(data) > maxTemplateBytes {
		return nil, fmt.Errorf("%s: larger than %d KiB", file, maxTemplateBytes>>10)
	}
	var raw rawTemplate
	d := toml.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&raw); err != nil {
		return nil, decodeError(file, err)
	}
	t := &Template{Name: raw.Name, Docs: raw.Docs, CheckURL: raw.CheckURL, trimUser: raw.TrimUser, rotates: raw.Rotates,
		gateways: raw.Gateway, vars: raw.Vars, headers: raw.Errors.Headers, errors: raw.Errors.Map}
	for _, check := range []func(*rawTemplate) error{t.checkGateways, t.checkVars, t.checkSession, t.checkGrammars, t.checkErrors} {
		if err := check(&raw); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if t.Name == "" {
		return nil, fmt.Errorf("%s: name is missing", file)
	}
	return t, nil
}

func decodeError(file string, err error) error {
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) && len(missing.Errors) > 0 {
		e := missing.Errors[0]
		row, col := e.Position()
		return fmt.Errorf("%s:%d:%d: unknown key %s", file, row, col, strings.Join(e.Key(), "."))
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, col := de.Position()
		return fmt.Errorf("%s:%d:%d: %w", file, row, col, err)
	}
	return fmt.Errorf("%s: %w", file, err)
}

func (t *Template) checkGateways(*rawTemplate) error {
	if len(t.gateways) == 0 {
		return errors.New("no [[gateway]]")
	}
	for _, g := range t.gateways {
		if err := proxy.CheckScheme(g.Scheme); err != nil {
			return fmt.Errorf("gateway: %w", err)
		}
		if g.Host != "" {
			if host, err := proxy.CleanHost(g.Host); err != nil || host != g.Host {
				return errors.New("gateway: host is not a name in small letters, or an address")
			}
		}
		if g.Host != "" && g.Port == 0 {
			return errors.New("gateway: port is missing")
		}
		if slices.Contains(g.Ports, 0) {
			return errors.New("gateway: ports: 0 is no port")
		}
	}
	return nil
}

// ownPlaces are the places that are not variables.
var ownPlaces = [...]string{"user", "password", "session", "ttl"}

func (t *Template) checkVars(*rawTemplate) error {
	for name, v := range t.vars {
		if !isPlace(name) || slices.Contains(ownPlaces[:], name) {
			return fmt.Errorf("vars.%s: not a name that a variable may have", name)
		}
		switch v.Case {
		case "", "lower", "upper":
		default:
			return fmt.Errorf("vars.%s: case %q is neither lower nor upper", name, v.Case)
		}
		re, err := regexp.Compile(`^(?:` + v.Pattern + `)$`)
		if err != nil || v.Pattern == "" {
			return fmt.Errorf("vars.%s: pattern %q is not a regular expression", name, v.Pattern)
		}
		v.re = re
		for _, other := range v.Requires {
			if t.vars[other] == nil {
				return fmt.Errorf("vars.%s: requires %q, which is no variable", name, other)
			}
		}
		if v.Default != "" && !re.MatchString(v.Default) {
			return fmt.Errorf("vars.%s: default does not match pattern", name)
		}
	}
	return nil
}

func (t *Template) checkGrammars(raw *rawTemplate) (err error) {
	if raw.Password == "" {
		raw.Password = "{password}"
	}
	if t.username, err = t.format("username", raw.Username); err != nil {
		return err
	}
	t.password, err = t.format("password", raw.Password)
	return err
}

// format reads a grammar and checks that the template knows all its places.
func (t *Template) format(key, text string) (grammar, error) {
	g, err := parseGrammar(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	g.each(func(place string, optional bool) {
		switch place {
		case "user", "password":
		case "session", "ttl":
			if t.session == nil || !optional || place == "ttl" && t.session.unit == "" {
				err = fmt.Errorf("%s: {%s} needs [session] (and ttl_unit), and brackets around it", key, place)
			}
		default:
			if t.vars[place] == nil {
				err = fmt.Errorf("%s: {%s} is not in vars", key, place)
			}
		}
	})
	return g, err
}

// gateway is the one for a scheme, the first for "".
func (t *Template) gateway(scheme string) (templateGateway, error) {
	var have []string
	for _, g := range t.gateways {
		if scheme == "" || g.Scheme == scheme {
			return g, nil
		}
		have = append(have, g.Scheme)
	}
	return templateGateway{}, &ParamError{"scheme", t.Name + " has no gateway for this scheme", "use " + strings.Join(have, " or ")}
}

// value brings what the user wrote into the vendor's form and checks it.
func (v *variable) value(name, text string) (string, error) {
	switch v.Case {
	case "lower":
		text = strings.ToLower(text)
	case "upper":
		text = strings.ToUpper(text)
	}
	text = strings.ReplaceAll(strings.TrimSpace(text), " ", "_")
	if to, ok := v.Rename[text]; ok {
		text = to
	}
	if text == "" {
		text = v.Default
	}
	if text != "" && !v.re.MatchString(text) {
		return "", &ParamError{name, name + " is not what this provider takes", v.Hint}
	}
	return text, nil
}

// defaultLife is how long an identity serves where neither the user nor the
// provider has said.
const defaultLife = 30 * time.Minute
