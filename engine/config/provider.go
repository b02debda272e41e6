package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atlanticproxy/atlanticproxy/assets"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// Provider is one [[provider]]: an account at a vendor of proxies, or a list of
// proxies. It is used like an upstream, by its name.
type Provider struct {
	Name         string // unique among upstreams, providers and groups
	Kind         string // of Kinds
	Template     string // absolute path of a provider file of the user's own; "" for the built-in one of Kind
	Username     string
	Password     proxy.Secret // as in Upstream
	PasswordFrom string

	Scheme  string // http, https, socks5; "" is the vendor's first
	Host    string // in place of the vendor's
	Port    int    // in place of the vendor's; 0 is the vendor's
	CA      string // as in Upstream
	Country string
	State   string
	City    string
	Zone    string
	ISP     string
	// Where a generic vendor wants parameters: "{user}-country-{country}[-session-{session}]".
	UsernameFormat, PasswordFormat string
	Session                        string // sticky, per-connection, per-app, per-domain; all but per-connection with a life: sticky-10m
	Pinned                         bool   // an exit that is gone is not replaced before its time is over
	Ports                          []int  // targets' ports that may be used; empty is the vendor's; 0 is any
	Pool                           int    // as in Upstream
	EarlyData                      bool   // as in Upstream

	// Of kind "list" alone.
	URL     proxy.Secret  // http(s) address, which may hold a token, or absolute path
	Refresh time.Duration // between two readings
	Policy  string        // of Policies
}

// Kinds are what Provider.Kind can be.
func Kinds() []string { return append(assets.Providers(), "list") }

// Policies say which member a flow goes to.
func Policies() []string { return []string{"latency", "failover", "weighted", "sticky"} }

// DefaultPool is how many connections are kept ready for a proxy at most.
const DefaultPool = 64

type rawProvider struct {
	Name      string  `toml:"name"`
	Kind      string  `toml:"kind"`
	Template  string  `toml:"template"`
	Username  string  `toml:"username"`
	Password  string  `toml:"password"`
	Scheme    string  `toml:"scheme"`
	Host      string  `toml:"host"`
	Port      int     `toml:"port"`
	CA        string  `toml:"ca"`
	Country   string  `toml:"country"`
	State     string  `toml:"state"`
	City      string  `toml:"city"`
	Zone      string  `toml:"zone"`
	ISP       string  `toml:"isp"`
	UserForm  string  `toml:"username_format"`
	PassForm  string  `toml:"password_format"`
	Session   string  `toml:"session"`
	Pinned    bool    `toml:"pinned"`
	Ports     []int   `toml:"ports"`
	Pool      *int    `toml:"pool"`
	EarlyData *string `toml:"early_data"`
	URL       string  `toml:"url"`
	Refresh   string  `toml:"refresh"`
	Policy    string  `toml:"policy"`
}

func validateProviders(src *source, r *raw, c *Config) error {
	for i, rp := range r.Provider {
		path := fmt.Sprintf("provider[%d]", i)
		if err := c.checkName(src, path, "provider", i, rp.Name); err != nil {
			return err
		}
		p, key, hint, err := makeProvider(rp)
		if err != nil {
			return src.wrong(path+"."+key, fmt.Sprintf("provider %q", rp.Name), hint, err)
		}
		c.Providers = append(c.Providers, p)
	}
	return nil
}

// makeProvider checks one provider; key is the one at fault if err is not nil.
func makeProvider(r rawProvider) (p Provider, key, hint string, err error) {
	p = Provider{
		Name: r.Name, Kind: r.Kind, Template: r.Template, Username: r.Username,
		Scheme: r.Scheme, Host: r.Host, Port: r.Port, CA: r.CA,
		Country: r.Country, State: r.State, City: r.City, Zone: r.Zone, ISP: r.ISP,
		UsernameFormat: r.UserForm, PasswordFormat: r.PassForm,
		Session: r.Session, Pinned: r.Pinned, Ports: r.Ports, URL: proxy.Secret(r.URL), Policy: r.Policy,
	}
	if p.Kind == "" && p.Template != "" {
		p.Kind = "generic"
	}
	if p.Password, p.PasswordFrom, err = parseSecret(r.Password); err != nil {
		return p, "password", "", err
	}
	if p.Pool, p.EarlyData, key, err = transport(r.Pool, r.EarlyData); err != nil {
		return p, key, "", err
	}
	switch {
	case !slices.Contains(Kinds(), p.Kind):
		return p, "kind", "one of: " + strings.Join(Kinds(), ", "), errors.New("this is no value of kind")
	case p.Template != "" && !filepath.IsAbs(p.Template):
		return p, "template", "", fmt.Errorf("template needs an absolute path")
	case p.CA != "" && !filepath.IsAbs(p.CA):
		return p, "ca", "", fmt.Errorf("ca needs an absolute path")
	case p.Scheme != "" && proxy.CheckScheme(p.Scheme) != nil:
		return p, "scheme", "", proxy.CheckScheme(p.Scheme)
	case p.Port < 0 || p.Port > 65535:
		return p, "port", "1 to 65535", fmt.Errorf("port %d is out of range", p.Port)
	case p.Kind != "generic" && p.UsernameFormat+p.PasswordFormat != "":
		return p, "username_format", "the vendor's own file knows them", fmt.Errorf("username_format and password_format are for kind = \"generic\" only")
	case slices.ContainsFunc(p.Ports, func(n int) bool { return n < 0 || n > 65535 }):
		return p, "ports", "such as [80, 443]; [0] is any", fmt.Errorf("ports has a number out of range")
	}
	if p.Host != "" {
		if _, err := proxy.CleanHost(p.Host); err != nil {
			return p, "host", "", err
		}
	}
	if _, err := resolve.ParseSession(p.Session); err != nil {
		return p, "session", `such as "sticky-10m", "per-app-30m", "per-domain-10m", "per-connection"`, err
	}
	return checkList(r, p)
}

// checkList keeps the keys of lists and of vendors apart.
func checkList(r rawProvider, p Provider) (_ Provider, key, hint string, err error) {
	if p.Kind != "list" {
		for key, set := range map[string]bool{"url": r.URL != "", "refresh": r.Refresh != "", "policy": r.Policy != ""} {
			if set {
				return p, key, "", fmt.Errorf("%s is for kind = \"list\" only", key)
			}
		}
		if p.Username == "" && p.Kind != "generic" {
			return p, "username", "the user name that the vendor gave you, without anything added", fmt.Errorf("has no username")
		}
		return p, "", "", nil
	}
	for key, set := range map[string]bool{
		"template": p.Template != "", "username": p.Username != "", "password": r.Password != "", "host": p.Host != "", "port": p.Port != 0,
		"ca": p.CA != "", "country": p.Country != "", "state": p.State != "", "city": p.City != "", "zone": p.Zone != "", "isp": p.ISP != "",
		"session": p.Session != "", "pinned": p.Pinned, "ports": len(p.Ports) > 0, "early_data": r.EarlyData != nil,
	} {
		if set {
			return p, key, "a list's lines say all that there is to say", fmt.Errorf("%s is not for kind = \"list\"", key)
		}
	}
	if err := checkListURL(r.URL); err != nil {
		return p, "url", "an http(s) address, or the absolute path of a file", err
	}
	if p.Refresh = time.Hour; r.Refresh != "" {
		if p.Refresh, err = time.ParseDuration(r.Refresh); err != nil || p.Refresh < time.Minute {
			return p, "refresh", `such as "1h"; at least one minute`, errors.New("refresh is not a length of time that it can be")
		}
	}
	if p.Policy == "" {
		p.Policy = "latency"
	}
	if !slices.Contains(Policies(), p.Policy) {
		return p, "policy", "one of: " + strings.Join(Policies(), ", "), errors.New("this is no value of policy")
	}
	return p, "", "", nil
}

// transport checks the keys that upstreams and providers share.
func transport(pool *int, early *string) (n int, on bool, key string, err error) {
	n, on = DefaultPool, true
	if pool != nil {
		if n = *pool; n < 0 || n > 1024 {
			return n, on, "pool", fmt.Errorf("pool %d is not from 0 to 1024", n)
		}
	}
	if early != nil {
		if *early != "auto" && *early != "off" {
			return n, on, "early_data", errors.New(`early_data is "auto" or "off"`)
		}
		on = *early == "auto"
	}
	return n, on, "", nil
}

func (p Provider) fields() []field {
	out := []field{{"name", Quote(p.Name)}, {"kind", Quote(p.Kind)}}
	for _, f := range []field{
		{"template", p.Template}, {"username", p.Username}, {"password", shownSecret(p.Password, p.PasswordFrom)},
		{"scheme", p.Scheme}, {"host", p.Host}, {"ca", p.CA}, {"country", p.Country}, {"state", p.State}, {"city", p.City},
		{"zone", p.Zone}, {"isp", p.ISP}, {"username_format", p.UsernameFormat}, {"password_format", p.PasswordFormat},
		{"session", p.Session}, {"url", shownListURL(p.URL.Reveal())}, {"policy", p.Policy},
	} {
		if f.value != "" {
			out = append(out, field{f.key, Quote(f.value)})
		}
	}
	if p.Port != 0 {
		out = append(out, field{"port", strconv.Itoa(p.Port)})
	}
	if p.Pinned {
		out = append(out, field{"pinned", "true"})
	}
	if len(p.Ports) > 0 {
		out = append(out, field{"ports", numbers(p.Ports)})
	}
	if p.Kind == "list" {
		out = append(out, field{"refresh", Quote(p.Refresh.String())})
	}
	return append(out, transportFields(p.Pool, p.EarlyData)...)
}

// transportFields renders what is not as by default.
func transportFields(pool int, early bool) (out []field) {
	if pool != DefaultPool {
		out = append(out, field{"pool", strconv.Itoa(pool)})
	}
	if !early {
		out = append(out, field{"early_data", `"off"`})
	}
	return out
}

func numbers(list []int) string { return strings.Join(strings.Fields(fmt.Sprint(list)), ", ") }
