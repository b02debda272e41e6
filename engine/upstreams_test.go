package engine

import (
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/config"
)

// What has only one gateway is shown as what it is.
func TestDescribeOneGateway(t *testing.T) {
	cfg, err := config.Parse("test", []byte(`
[listen]
proxy = ""
[[upstream]]
name = "one"
url = "socks5://192.0.2.1:1080"
[[upstream]]
name = "two"
url = "http://192.0.2.2:8080"
[[provider]]
name = "vendor"
kind = "generic"
username = "alice"
password = "secret"
scheme = "https"
host = "vendor.example"
port = 7777
[[provider]]
name = "list"
kind = "list"
url = "/nowhere/list"
scheme = "http"
[[group]]
name = "alone"
members = ["one"]
[[group]]
name = "both"
members = ["one", "two"]
`))
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, cfg)
	want := map[string]string{
		"one": "socks5 192.0.2.1:1080", "two": "http 192.0.2.2:8080", "direct": "direct ",
		"vendor": "https vendor.example:7777", "list": "group ", "alone": "socks5 192.0.2.1:1080", "both": "group ",
	}
	for _, u := range b.Upstreams().Upstreams {
		if got := u.Scheme + " " + u.Address; got != want[u.Name] {
			t.Errorf("%s: %q, want %q", u.Name, got, want[u.Name])
		}
	}
	b.prefs(t, api.Prefs{Upstream: ptr("vendor")})
	if u := b.Status().Upstream; u.Scheme != "https" || u.Address != "vendor.example:7777" {
		t.Errorf("status: %+v", u)
	}
}

// A name in another case is that name: no two names differ by case alone.
func TestChoiceInAnotherCase(t *testing.T) {
	cfg, err := config.Parse("test", []byte("[listen]\nproxy = \"\"\n[[upstream]]\nname = \"Home\"\nurl = \"direct://\"\n[[upstream]]\nname = \"away\"\nurl = \"direct://\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, cfg)
	for _, tc := range []struct{ ask, choice, name string }{
		{"AWAY", "away", "away"}, {"Auto", "auto", "Home"}, {"home", "Home", "Home"}, {"DIRECT", "direct", "direct"},
	} {
		b.prefs(t, api.Prefs{Upstream: ptr(tc.ask)})
		if got, st := b.Upstreams().Choice, b.Status(); got != tc.choice || st.Upstream.Name != tc.name {
			t.Errorf("use %s: the choice is %q, in use is %q", tc.ask, got, st.Upstream.Name)
		}
	}
}
