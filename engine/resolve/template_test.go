package resolve

import (
	"errors"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/assets"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// provider reads one of the files that we ship.
func provider(t testing.TB, kind string) *Template {
	t.Helper()
	data, err := assets.Provider(kind)
	if err != nil {
		t.Fatal(err)
	}
	tpl, err := ParseTemplate(kind+".toml", data)
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

func session(t testing.TB, s string) SessionMode {
	t.Helper()
	m, err := ParseSession(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// numbered is a source of randomness that always gives the same.
func numbered() func() uint64 {
	var n atomic.Uint64
	return func() uint64 { return mix(n.Add(1)) }
}

func TestEveryProviderFileIsReadable(t *testing.T) {
	kinds := assets.Providers()
	if len(kinds) < 6 {
		t.Fatalf("only %v", kinds)
	}
	for _, kind := range kinds {
		tpl := provider(t, kind)
		for _, status := range []int{400, 403, 407, 429, 500, 502, 503, 504, 522, 525} {
			found := false
			for _, e := range tpl.errors {
				for _, s := range e.Status {
					found = found || s == status
				}
			}
			if !found {
				t.Errorf("%s says nothing about %d", kind, status)
			}
		}
	}
}

func TestVendorsUserNames(t *testing.T) {
	const sid = `[0-9a-z]{10}`
	vars := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, c := range []struct {
		kind, session string
		vars          map[string]string
		addr          string
		user, pass    string // regular expressions
	}{
		{"oxylabs", "sticky-10m", vars("country", "us"), "pr.oxylabs.io:7777", "customer-bob-cc-US-sessid-" + sid + "-sesstime-10", "s3cret"},
		{"oxylabs", "sticky", vars("country", "GB", "city", "St Petersburg"), "pr.oxylabs.io:7777", "customer-bob-cc-GB-city-st_petersburg-sessid-" + sid + "-sesstime-10", "s3cret"},
		{"oxylabs", "sticky-30m", vars("state", "us_california"), "pr.oxylabs.io:7777", "customer-bob-st-us_california-sessid-" + sid + "-sesstime-30", "s3cret"},
		{"oxylabs", "per-connection", nil, "pr.oxylabs.io:7777", "customer-bob", "s3cret"},
		{"brightdata", "sticky-10m", vars("zone", "resi1", "country", "US"), "brd.superproxy.io:33335", "brd-customer-bob-zone-resi1-country-us-session-" + sid, "s3cret"},
		{"brightdata", "per-connection", vars("zone", "resi1", "country", "us", "city", "newyork"), "brd.superproxy.io:33335", "brd-customer-bob-zone-resi1-country-us-city-newyork", "s3cret"},
		{"decodo", "sticky-30m", vars("country", "us", "city", "new york"), "gate.decodo.com:7000", "user-bob-country-us-city-new_york-session-" + sid + "-sessionduration-30", "s3cret"},
		{"iproyal", "sticky-10m", vars("country", "BR"), "geo.iproyal.com:12321", "bob", "s3cret_country-br_session-[0-9a-z]{8}_lifetime-10m"},
		{"iproyal", "sticky-2h", nil, "geo.iproyal.com:12321", "bob", "s3cret_session-[0-9a-z]{8}_lifetime-2h"},
		{"iproyal", "sticky-90m", nil, "geo.iproyal.com:12321", "bob", "s3cret_session-[0-9a-z]{8}_lifetime-90m"},
		{"netnut", "sticky", vars("country", "us"), "gw.netnut.net:5959", "bob-res-us-sid-[1-9][0-9]{4,8}", "s3cret"},
		{"netnut", "sticky", nil, "gw.netnut.net:5959", "bob-res-any-sid-[1-9][0-9]{4,8}", "s3cret"},
		{"netnut", "per-connection", vars("country", "GB"), "gw.netnut.net:5959", "bob-res-uk", "s3cret"},
		{"netnut", "per-connection", vars("pool", "res_sc", "country", "us_alabama_birmingham"), "gw.netnut.net:5959", "bob-res_sc-us_alabama_birmingham", "s3cret"},
	} {
		a := &Account{Name: "p", Template: provider(t, c.kind), Username: "bob", Password: "s3cret", Vars: c.vars, Session: session(t, c.session)}
		r, err := New(Options{Sources: []Source{{Account: a}}})
		if err != nil {
			t.Errorf("%s %s: %v", c.kind, c.session, err)
			continue
		}
		e, err := r.Pick(Key{})
		if err != nil {
			t.Errorf("%s %s: %v", c.kind, c.session, err)
			continue
		}
		if !regexp.MustCompile("^" + c.user + "$").MatchString(e.Username) {
			t.Errorf("%s %s: user name %q", c.kind, c.session, e.Username)
		}
		if !regexp.MustCompile("^" + c.pass + "$").MatchString(e.Password.Reveal()) {
			t.Errorf("%s %s: password %q", c.kind, c.session, e.Password.Reveal())
		}
		if e.Addr() != c.addr || e.Scheme != "http" {
			t.Errorf("%s: %s://%s", c.kind, e.Scheme, e.Addr())
		}
	}
}

// TestPastedCredentials: user names and passwords as dashboards show them, with
// parameters, are understood; none is written twice.
func TestPastedCredentials(t *testing.T) {
	const sid, id8 = `[0-9a-z]{10}`, `[0-9a-z]{8}`
	for _, c := range []struct {
		kind, session, user, pass string
		vars                      map[string]string
		wantUser, wantPass        string // regular expressions
	}{
		{"oxylabs", "", "customer-bob-cc-US-sessid-abc12345-sesstime-10", "pw", nil, "customer-bob-cc-US-sessid-" + sid + "-sesstime-10", "pw"},
		{"oxylabs", "", "customer-bob-cc-us-city-new_york-sesstime-5", "pw", nil, "customer-bob-cc-US-city-new_york-sessid-" + sid + "-sesstime-5", "pw"},
		{"oxylabs", "sticky-30m", "bob-sessid-abc-sesstime-5-cc-DE", "pw", nil, "customer-bob-cc-DE-sessid-" + sid + "-sesstime-30", "pw"},
		{"oxylabs", "per-connection", "customer-bob-cc-US-sessid-abc", "pw", nil, "customer-bob-cc-US", "pw"},
		{"oxylabs", "per-connection", "customer-bob-cc-US", "pw", map[string]string{"country": "us"}, "customer-bob-cc-US", "pw"},
		{"oxylabs", "per-connection", "customer-bob_2-x", "pw", map[string]string{"country": "us"}, "customer-bob_2-x-cc-US", "pw"},
		{"brightdata", "", "brd-customer-hl_1a2b-zone-residential_proxy1", "pw", nil, "brd-customer-hl_1a2b-zone-residential_proxy1-session-" + sid, "pw"},
		{"brightdata", "per-connection", "brd-customer-hl_1a2b-zone-z1-country-us-session-rand39", "pw", map[string]string{"city": "newyork"}, "brd-customer-hl_1a2b-zone-z1-country-us-city-newyork", "pw"},
		{"brightdata", "per-connection", "brd-customer-hl_1a2b-zone-z1-dns-remote-country-gb", "pw", nil, "brd-customer-hl_1a2b-zone-z1-country-gb-dns-remote", "pw"},
		{"decodo", "", "user-sp123-country-us-city-new_york-session-x1-sessionduration-30", "pw", nil, "user-sp123-country-us-city-new_york-session-" + sid + "-sessionduration-30", "pw"},
		{"iproyal", "", "bob", "pw_country-br_session-sgn34f3e_lifetime-2h", nil, "bob", "pw_country-br_session-" + id8 + "_lifetime-2h"},
		{"iproyal", "sticky-10m", "bob", "pw_country-br,us_city-rio_streaming-1", nil, "bob", "pw_country-br,us_city-rio_session-" + id8 + "_lifetime-10m_streaming-1"},
		{"netnut", "", "bob-res-any-sid-44575", "pw", nil, "bob-res-any-sid-[0-9]+", "pw"},
		{"netnut", "per-connection", "bob-res_sc-us_alabama_birmingham", "pw", nil, "bob-res_sc-us_alabama_birmingham", "pw"},
		{"netnut", "per-connection", "bob-smith", "pw", nil, "bob-smith-res-any", "pw"},
	} {
		a := &Account{Name: "p", Template: provider(t, c.kind), Username: c.user, Password: proxy.Secret(c.pass), Vars: c.vars, Session: session(t, c.session)}
		e := mustPick(t, newResolver(t, Options{Sources: []Source{{Account: a}}}), Key{})
		if !regexp.MustCompile("^"+c.wantUser+"$").MatchString(e.Username) || !regexp.MustCompile("^"+c.wantPass+"$").MatchString(e.Password.Reveal()) {
			t.Errorf("%s %s %s: became %s %s", c.kind, c.user, c.pass, e.Username, e.Password.Reveal())
		}
		// What came of it, pasted, means the same.
		again := &Account{Name: "p", Template: a.Template, Username: e.Username, Password: e.Password, Vars: c.vars, Session: a.Session}
		e = mustPick(t, newResolver(t, Options{Sources: []Source{{Account: again}}}), Key{})
		if !regexp.MustCompile("^" + c.wantUser + "$").MatchString(e.Username) {
			t.Errorf("%s: pasted again, it became %s", c.kind, e.Username)
		}
	}
	a := &Account{Template: provider(t, "oxylabs"), Username: "customer-bob-cc-US", Password: "pw", Vars: map[string]string{"country": "de"}}
	if err := a.Validate(); err == nil || err.Error() != "country is another one in username" {
		t.Errorf("two countries: %v", err)
	}
	own := &Account{Template: provider(t, "generic"), Username: "bob-c-de-s-x1", Password: "pw", Host: "h", Port: 1,
		UsernameFormat: "{user}[-c-{country}][-s-{session}]", Session: session(t, "per-connection")}
	if e := mustPick(t, newResolver(t, Options{Sources: []Source{{Account: own}}}), Key{}); !regexp.MustCompile("^bob-c-de-s-" + id8 + "$").MatchString(e.Username) {
		t.Errorf("a format of the user's own: %s", e.Username)
	}
}

func TestProvidersRefuseWhatTheyCannotTake(t *testing.T) {
	for _, c := range []struct {
		kind, session, key, value string
		scheme                    string
		want                      string
	}{
		{"oxylabs", "sticky", "country", "USA", "", "two letters"},
		{"oxylabs", "sticky", "country", "u-", "", "country"},
		{"oxylabs", "sticky", "city", "berlin", "", "needs country"},
		{"oxylabs", "sticky", "zone", "x", "", "does not take zone"},
		{"oxylabs", "sticky-25h", "", "", "", "1m to 24h"},
		{"oxylabs", "sticky-90s", "", "", "", "whole minutes"},
		{"oxylabs", "sticky", "", "", "socks4", "no gateway"},
		{"brightdata", "sticky", "", "", "", "zone is missing"},
		{"brightdata", "sticky", "zone", "a-b", "", "zone"},
		{"netnut", "sticky", "pool", "vip", "", "pool"},
		{"generic", "sticky", "", "", "", "host and port"},
	} {
		a := &Account{Name: "p", Template: provider(t, c.kind), Username: "bob", Password: "x", Scheme: c.scheme,
			Vars: map[string]string{c.key: c.value}, Session: session(t, c.session)}
		var pe *ParamError
		if err := a.Validate(); !errors.As(err, &pe) || !strings.Contains(pe.Msg+": "+pe.Hint, c.want) || len(c.value) > 2 && strings.Contains(pe.Msg, c.value) {
			t.Errorf("%s %s=%s %s: %v, want %q", c.kind, c.key, c.value, c.session, err, c.want)
		}
	}
	pasted := &Account{Template: provider(t, "oxylabs"), Username: "customer-bob", Password: "x", Session: session(t, "per-connection")}
	if e := mustPick(t, newResolver(t, Options{Sources: []Source{{Account: pasted}}}), Key{}); e.Username != "customer-bob" {
		t.Errorf("a name that was given in full became %s", e.Username)
	}
	if err := (&Account{Template: provider(t, "oxylabs"), Password: "x"}).Validate(); err == nil || err.Error() != "username is missing" {
		t.Errorf("no user name: %v", err)
	}
}

func TestGenericProviderTakesAFormat(t *testing.T) {
	a := &Account{Name: "v", Template: provider(t, "generic"), Username: "bob", Password: "p", Scheme: "socks5", Host: "gw.example", Port: 1080,
		UsernameFormat: "{user}-c-{country}[-s-{session}[-t-{ttl}]]", Vars: map[string]string{"country": "de"}, Session: session(t, "sticky-5m")}
	r, err := New(Options{Sources: []Source{{Account: a}}})
	if err != nil {
		t.Fatal(err)
	}
	e, _ := r.Pick(Key{})
	if !regexp.MustCompile(`^bob-c-de-s-[0-9a-z]{8}-t-5$`).MatchString(e.Username) {
		t.Error(e.Username)
	}
	a.UsernameFormat, a.Vars = "", nil
	if err := a.Validate(); err == nil || !strings.Contains(err.Error(), "no sessions") {
		t.Errorf("a session where the name has no place for one: %v", err)
	}
	a.UsernameFormat = "{user}-{session}"
	if err := a.Validate(); err == nil || !strings.Contains(err.Error(), "brackets") {
		t.Errorf("a session that cannot be left out: %v", err)
	}
}

func TestSessionIDsStayInRange(t *testing.T) {
	rule := provider(t, "netnut").session
	for _, extreme := range []uint64{0, 1<<64 - 1} {
		id := rule.id(func() uint64 { return extreme })
		if len(id) < 5 || len(id) > 9 {
			t.Errorf("%s", id)
		}
	}
	seen := map[string]bool{}
	next := numbered()
	ox := provider(t, "oxylabs").session
	for range 10_000 {
		id := ox.id(next)
		if seen[id] {
			t.Fatalf("%s twice", id)
		}
		seen[id] = true
	}
}

func TestParseSessionRoundTrip(t *testing.T) {
	for _, s := range []string{"per-connection", "sticky", "sticky-10m", "per-app-1h30m", "per-domain-2h", "per-app", "sticky-1m30s"} {
		if got := session(t, s).String(); got != s {
			t.Errorf("%s became %s", s, got)
		}
	}
	if m := session(t, ""); m.Scope != Shared || m.Life != 0 {
		t.Error(m)
	}
	for _, s := range []string{"sticky-", "sticky-10", "sticky-5s", "sticky-200h", "per-connection-5m", "per", "stickyx", "sticky-1m0.5s", "sticky--5m"} {
		if m, err := ParseSession(s); err == nil {
			t.Errorf("%q is %v", s, m)
		}
	}
}

func TestTemplateErrorsSayWhere(t *testing.T) {
	const good = "name = \"x\"\nusername = \"{user}\"\n[[gateway]]\nscheme = \"http\"\nhost = \"h.example\"\nport = 1\n"
	if _, err := ParseTemplate("x.toml", []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{good + "prot = 2\n", "x.toml:7:1: unknown key"},
		{good + "[session\n", "x.toml:7:"},
		{strings.Replace(good, "http", "socks4", 1), "scheme"},
		{strings.Replace(good, "{user}", "{user}[-x]", 1), "without a place"},
		{strings.Replace(good, "{user}", "{user}-{city}", 1), "{city} is not in vars"},
		{strings.Replace(good, "{user}", "{user}[-{session}]", 1), "needs [session]"},
		{strings.Replace(good, "{user}", "{user", 1), "username"},
		{strings.Replace(good, "{user}", "{user}]", 1), "] without ["},
		{strings.Replace(good, "{user}", "[{user}", 1), "[ without ]"},
		{good + "[vars.a]\npattern = \"(\"\n", "regular expression"},
		{good + "[vars.user]\npattern = \"a\"\n", "vars.user"},
		{good + "[[errors.map]]\nstatus = [1]\naction = \"dance\"\nmeaning = \"x\"\n", "dance"},
		{good + "[session]\nchars = \"alnum\"\nlength = 2\n", "length"},
		{strings.Replace(good, "name = \"x\"", "", 1), "name is missing"},
	} {
		if _, err := ParseTemplate("x.toml", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
}

func TestLifetimesInVendorsUnits(t *testing.T) {
	for _, c := range []struct {
		unit string
		life time.Duration
		want string
	}{
		{"minutes", 10 * time.Minute, "10"}, {"seconds", 90 * time.Second, "90"}, {"suffix", 90 * time.Second, "90s"},
		{"suffix", 48 * time.Hour, "2d"}, {"suffix", 3 * time.Hour, "3h"}, {"", time.Hour, ""},
	} {
		if got := (&sessionRule{unit: c.unit}).ttl(c.life); got != c.want {
			t.Errorf("%v in %s: %q", c.life, c.unit, got)
		}
	}
}

func TestCarries(t *testing.T) {
	pick := func(a *Account) *Endpoint {
		a.Name, a.Username, a.Password, a.Vars = "bd", "bob", "x", map[string]string{"zone": "z"}
		a.Template = provider(t, "brightdata")
		r, err := New(Options{Sources: []Source{{Account: a}}})
		if err != nil {
			t.Fatal(err)
		}
		e, err := r.Pick(Key{})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	socks := pick(&Account{Scheme: "socks5"})
	for _, c := range []struct {
		host string
		port uint16
		want bool
	}{{"example.com", 443, true}, {"example.com", 80, false}, {"192.0.2.1", 443, false}, {"[2001:db8::1]", 443, false}} {
		if err := socks.Carries(c.host, c.port); (err == nil) != c.want {
			t.Errorf("%s:%d: %v", c.host, c.port, err)
		}
	}
	if err := pick(&Account{}).Carries("192.0.2.1", 8080); err != nil {
		t.Error(err)
	}
	if err := pick(&Account{Ports: []uint16{0}}).Carries("example.com", 22); err != nil {
		t.Error("the account may use any port:", err)
	}
	if err := pick(&Account{Ports: []uint16{22}}).Carries("example.com", 443); err == nil {
		t.Error("the account may use port 22 only")
	}
}

func FuzzTemplate(f *testing.F) {
	for _, kind := range assets.Providers() {
		data, _ := assets.Provider(kind)
		f.Add(string(data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		tpl, err := ParseTemplate("fuzz", []byte(text))
		if err != nil {
			return
		}
		a := &Account{Name: "a", Template: tpl, Username: "u", Password: "p", Host: "h.example", Port: 1}
		if a.Validate() != nil {
			return
		}
		r, err := New(Options{Sources: []Source{{Account: a}}})
		if err != nil {
			t.Fatal("valid, but:", err)
		}
		if e, err := r.Pick(Key{}); err != nil || e.Host != "h.example" || (proxy.Spec{Scheme: e.Scheme, Host: e.Host, Port: e.Port, Username: e.Username, Password: e.Password}).Validate() != nil {
			t.Fatal(e, err)
		}
	})
}

func FuzzGrammar(f *testing.F) {
	f.Add("a-{user}[-b-{x}[-c-{y}]]", "v", "")
	f.Fuzz(func(t *testing.T, text, x, y string) {
		g, err := parseGrammar(text)
		if err != nil {
			return
		}
		out := g.fill(func(place string) string {
			if place == "x" {
				return x
			}
			return y
		})
		if x == "" && y == "" && len(out) > len(text) {
			t.Fatalf("%q gave %q", text, out)
		}
	})
}
