package resolve

import (
	"maps"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// What a vendor's dashboard shows as the user name, or as the password, has
// parameters in it already:
//
//	customer-bob-cc-US-sessid-abc-sesstime-10 ─► bob, country US, a life of 10 minutes
//
// They are taken out and understood, so that none is written twice. What looks
// like a parameter that the grammar has no place for stays behind the rest.

// given is a user name or password taken apart.
type given struct {
	base   string
	values map[string]string // of the grammar's places
	extra  string            // of parameters that are unknown
}

// takeApart finds the grammar's places behind root, which is user or password.
func (t *Template) takeApart(g grammar, root, text string) given {
	whole := given{base: text}
	i := 0
	for ; i < len(g) && g[i].place != root; i++ {
	}
	if i == len(g) {
		return whole
	}
	runs := t.runs(g[i+1:])
	if len(runs) == 0 || len(text) > maxGrammarBytes {
		return whole
	}
	sep := regexp.QuoteMeta(string(runs[0].sep))
	runs = append(runs, run{re: regexp.MustCompile("^" + sep + "[a-z]+-[^" + sep + "]+")}) // of a parameter that is unknown
	for n := 1; n < len(text); n++ {
		found := given{base: text[:n], values: map[string]string{}}
		if text[n] == runs[0].sep && found.consume(text[n:], runs) && len(found.values) > 0 {
			return found
		}
	}
	return whole
}

// run is text with places in it, as it stands in a user name.
type run struct {
	re  *regexp.Regexp
	sep byte // that it begins with; 0: it has no place
}

// runs are those of a grammar that can be told from a name: they have a word of
// their own, or several places. All begin with the same byte, or there are none.
func (t *Template) runs(g grammar) (out []run) {
	var expr, literal strings.Builder
	places := 0
	end := func() {
		if places > 0 && literal.Len() > 0 && (places > 1 || strings.ToUpper(literal.String()) != literal.String()) {
			out = append(out, run{regexp.MustCompile("^" + expr.String()), literal.String()[0]})
		}
		expr.Reset()
		literal.Reset()
		places = 0
	}
	for _, p := range g {
		switch {
		case p.opt != nil:
			end()
			out = append(out, t.runs(p.opt)...)
		case p.place == "":
			expr.WriteString(regexp.QuoteMeta(p.text))
			literal.WriteString(p.text)
		default:
			expr.WriteString("(?P<" + p.place + ">" + t.patternOf(p.place) + ")")
			places++
		}
	}
	end()
	for _, r := range out {
		if r.sep != out[0].sep {
			return nil
		}
	}
	return out
}

// patternOf is what may stand at a place.
func (t *Template) patternOf(place string) string {
	if v := t.vars[place]; v != nil {
		return "(?i:" + v.Pattern + ")"
	}
	if place == "ttl" {
		return "[0-9]+[a-z]?"
	}
	return "[A-Za-z0-9]+"
}

// consume takes parameters off the front of rest; it reports false if rest is
// something else.
func (f *given) consume(rest string, runs []run) bool {
	for rest != "" {
		n := 0
		for _, r := range runs {
			m := r.re.FindStringSubmatch(rest)
			if m == nil || len(m[0]) < len(rest) && rest[len(m[0])] != runs[0].sep {
				continue
			}
			n = len(m[0])
			for i, place := range r.re.SubexpNames() {
				if place != "" {
					f.values[place] = m[i]
				}
			}
			if r.sep == 0 {
				f.extra += m[0]
			}
			break
		}
		if n == 0 || len(f.values) == 0 {
			return false
		}
		rest = rest[n:]
	}
	return true
}

// setGiven takes the account's user name and password apart.
func (c *credentials) setGiven(a *Account) error {
	t := a.Template
	user := t.takeApart(c.user, "user", strings.TrimPrefix(a.Username, t.trimUser))
	pass := t.takeApart(c.pass, "password", a.Password.Reveal())
	a.Username, a.Password = user.base, proxy.Secret(pass.base)
	c.userExtra, c.passExtra = user.extra, pass.extra
	if err := c.merge(a, "username", user); err != nil {
		return err
	}
	return c.merge(a, "password", pass)
}

// merge adds what stands in the user name or password to what the account says.
// What both say must be the same.
func (c *credentials) merge(a *Account, key string, f given) error {
	t := a.Template
	vars := maps.Clone(a.Vars)
	if vars == nil {
		vars = map[string]string{}
	}
	for name, text := range f.values {
		v := t.vars[name]
		if v == nil {
			continue // a session, which is ours to name, or its life
		}
		if vars[name] != "" {
			one, err1 := v.value(name, text)
			other, err2 := v.value(name, vars[name])
			if err1 == nil && err2 == nil && one != other {
				return &ParamError{name, name + " is another one in " + key, "leave it out of one of them"}
			}
			continue
		}
		vars[name] = text
	}
	a.Vars = vars
	if life, ok := t.session.parseTTL(f.values["ttl"]); ok && a.Session == (SessionMode{}) {
		a.Session.Life = life
	}
	return nil
}

// parseTTL reads what ttl writes.
func (s *sessionRule) parseTTL(text string) (time.Duration, bool) {
	if s == nil || text == "" {
		return 0, false
	}
	number := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyz")
	n, err := strconv.Atoi(number)
	unit := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[text[len(number):]]
	switch {
	case s.unit == "minutes" && text == number:
		unit = time.Minute
	case s.unit == "seconds" && text == number:
		unit = time.Second
	}
	return time.Duration(n) * unit, err == nil && unit > 0
}
