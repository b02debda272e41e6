package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

const full = `# everything
[tun]
enabled = false
name = "tun9"   # short
mtu = 1400
stack = "userspace"

[listen]
proxy = "[::1]:7890"

[dns]
mode = "real"
servers = [
  "tls://9.9.9.9", # one
  "https://dns.example/dns-query",
  "1.1.1.1",
]
fake_range = "10.64.0.0/12"

[protect]
kill_switch = "off"
udp = "block"
lan = false

[[upstream]]
name = "office"
url = "https://u%40x:p%20w@Proxy.Example:8443"
sni = "front.example"

[[upstream]]
name = "two"
url = "socks5://192.0.2.1"
username = "bob"
password = "env:ATLANTIC_TEST_PW"
pool = 8
early_data = "off"

[[provider]]
name = "oxy"
kind = "oxylabs"
username = "carol"
password = "file:/etc/atlantic/oxy.password"
country = "de"
session = "per-app-30m"
pinned = true
ports = [80, 443]

[[provider]]
name = "bulk"
kind = "list"
url = "https://lists.example/all.txt"
refresh = "10m"

[[group]]
name = "all"
members = ["two", "oxy"]
policy = "weighted"
weights = [1, 3]

[[rule]]
domain = ["a.example", "bücher.de"]
domain_suffix = [".corp.example"]
cidr = ["10.0.0.0/8", "2001:db8::1"]
port = [443, "8000-9000"]
process = ["firefox", 'C:\x y\z.exe']
via = "all"

[[rule]]
port = [25]
via = "block"
`

func TestParseFull(t *testing.T) {
	c, err := Parse("f.toml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	u := c.Upstreams[0]
	if u.URL != "https://proxy.example:8443" || u.Username != "u@x" || u.Password.Reveal() != "p w" || u.PasswordFrom != "" {
		t.Errorf("%+v %q", u, u.Password.Reveal())
	}
	if c.TUN.MTU != 1400 || c.TUN.Enabled || c.DNS.FakeRange.String() != "10.64.0.0/12" || len(c.DNS.Servers) != 3 || c.Protect.LAN {
		t.Errorf("%+v", c)
	}
	if o := c.Upstreams[0]; o.Pool != DefaultPool || !o.EarlyData || c.Upstreams[1].Pool != 8 || c.Upstreams[1].EarlyData {
		t.Errorf("%+v", c.Upstreams)
	}
	if p := c.Providers[0]; p.Country != "de" || p.Session != "per-app-30m" || !p.Pinned || len(p.Ports) != 2 || p.PasswordFrom != "file:/etc/atlantic/oxy.password" {
		t.Errorf("%+v", p)
	}
	if p := c.Providers[1]; p.Refresh != 10*time.Minute || p.Policy != "latency" {
		t.Errorf("%+v", p)
	}
	if g := c.Groups[0]; fmt.Sprint(g) != "{all [two oxy] weighted [1 3]}" || fmt.Sprint(c.Names()) != "[office two oxy bulk all]" {
		t.Errorf("%+v %v", g, c.Names())
	}
	r := c.Rules[0]
	if fmt.Sprint(r.Port) != "[443 8000-9000]" || fmt.Sprint(r.CIDR) != "[10.0.0.0/8 2001:db8::1/128]" {
		t.Errorf("%+v", r)
	}
}

func TestRoundTrip(t *testing.T) {
	for name, in := range map[string]string{"full": full, "empty": "", "default": Default().TOML()} {
		a, err := Parse("a", []byte(in))
		if err != nil {
			t.Fatal(name, err)
		}
		text := a.TOML()
		if strings.Contains(text, "p w") || strings.Contains(text, "p%20w") {
			t.Error("a password shows")
		}
		b, err := Parse("b", []byte(text))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		for i := range b.Upstreams {
			if a.Upstreams[i].Password != "" {
				a.Upstreams[i].Password = "redacted"
			}
		}
		for i := range b.Providers {
			a.Providers[i].URL = proxy.Secret(shownListURL(a.Providers[i].URL.Reveal()))
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%s:\n%+v\n%+v", name, a, b)
		}
	}
	if c, _ := Parse("", nil); !reflect.DeepEqual(c, Default()) {
		t.Error("an empty file is not the default")
	}
}

func TestErrorsHavePlaceAndHint(t *testing.T) {
	tests := []struct{ in, place, msg, hint string }{
		{"[tun]\nmtuu = 1", ":2:1", `unknown key "mtuu" in [tun]`, `did you mean "mtu"?`},
		{"mtu = 1", ":1:1", `unknown key "mtu"`, `belongs in [tun]`},
		{"[dsn]\nmode='real'", ":1:2", `unknown key "dsn"`, `"dns"`},
		{"[tun]\nmtu = 1279", ":2:1", "mtu 1279 is out of range", "1280"},
		{"[tun]\nmtu = 65536", ":2:1", "out of range", ""},
		{"[tun]\n  mtu = 1.5", ":2:3", "mtu is a number or", ""},
		{"[tun]\nname = 'a/b'", ":2:1", "none for a network device", ""},
		{"[tun]\nstack = 'kernal'", ":2:1", "no value of tun.stack", `did you mean "kernel"`},
		{"[tun]\nenabled = 'yes'", ":2:", "true or false", ""},
		{"[tun]\nname = 7", ":2:", "string in quotes", ""},
		{"[tun]\nenabled = true\nenabled = true", ":3:", "", ""},
		{"[tun\n", ":1:", "", ""},
		{"[listen]\nproxy = '0.0.0.0:80'", ":2:1", "not a loopback", "127.0.0.1:7890"},
		{"[listen]\nproxy = ':80'", ":2:1", "not ip:port", ""},
		{"[dns]\nmode = 'fakeip'", ":2:1", "dns.mode", `"fake-ip"`},
		{"[dns]\nservers = []", ":2:1", "no DNS server", ""},
		{"[dns]\nservers = ['1.1.1.1',\n  'ftp://x']", ":3:3", "scheme is not one", "https://1.1.1.1"},
		{"[dns]\nfake_range = '198.18.0.0/17'", ":2:1", "cannot hold fake", "/16"},
		{"[dns]\nfake_range = '8.0.0.0/8'", ":2:1", "cannot hold fake", ""},
		{"[dns]\nfake_range = 'fd00::/8'", ":2:1", "cannot hold fake", ""},
		{"[protect]\nkill_switch = 'always'", ":2:1", "not in this version", `"auto" or "off"`},
		{"[protect]\nudp = 'drop'", ":2:1", "protect.udp", "auto, block, direct"},
		{"[[provider]]\nname='x'", ":1:", "no value of kind", "brightdata, decodo"},
		{"[[provider]]\nname='x'\nkind='oxylab'\nusername='u'", ":3:1", "no value of kind", "oxylabs"},
		{"[[provider]]\nname='x'\nkind='oxylabs'", ":1:", "has no username", "vendor"},
		{"[[provider]]\nname='x'\nkind='oxylabs'\nusername='u'\nsession='sticky-10'", ":5:1", "life must be", "sticky-10m"},
		{"[[provider]]\nname='x'\nkind='oxylabs'\nusername='u'\nport=70000", ":5:1", "out of range", ""},
		{"[[provider]]\nname='x'\nkind='oxylabs'\nusername='u'\nurl='https://x'", ":5:1", "url is for kind", ""},
		{"[[provider]]\nname='x'\nkind='list'\nurl='relative.txt'", ":4:1", "neither a web address", "absolute path"},
		{"[[provider]]\nname='x'\nkind='list'\nurl='/a'\nrefresh='1s'", ":5:1", "refresh is not", "1h"},
		{"[[provider]]\nname='x'\nkind='list'\nurl='/a'\ncountry='de'", ":5:1", "country is not for kind", ""},
		{"[[provider]]\nname='x'\nkind='generic'\ntemplate='x.toml'", ":4:1", "absolute path", ""},
		{"[[provider]]\nname='x'\nkind='generic'\nsession=''\nstat='x'", ":5:1", "unknown key", `"state"`},
		{"[[upstream]]\nname='a'\nurl='http://h'\n[[provider]]\nname='a'\nkind='generic'", ":5:1", `"a", which is taken`, ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\npool=-1", ":4:1", "pool -1", ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\nearly_data='on'", ":4:1", `"auto" or "off"`, ""},
		{"[[group]]\nname='g'", ":1:", "has no members", ""},
		{"[[group]]\nname='g'\nmembers=['a']", ":3:", "member 1 is none", ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\n[[group]]\nname='g'\nmembers=['a','a']", ":6:", "member 2 is none", "each once"},
		{"[[upstream]]\nname='a'\nurl='http://h'\n[[group]]\nname='g'\nmembers=['a']\npolicy='best'", ":7:1", "policy", "latency"},
		{"[[upstream]]\nname='a'\nurl='http://h'\n[[group]]\nname='g'\nmembers=['a']\nweights=[0]", ":7:1", "weights do not fit", ""},
		{"[filter]\nenabled=true", ":1:", "not in this version", ""},
		{"[share]\nrelay=''", ":1:", "not in this version", ""},
		{"[[upstream]]\nurl='direct://'", ":1:", "has no name", ""},
		{"[[upstream]]\nname='direct'\nurl='direct://'", ":2:1", "reserved", ""},
		{"[[upstream]]\nname='AUTO'\nurl='direct://'", ":2:1", "reserved", ""},
		{"[[upstream]]\nname='-v'\nurl='direct://'", ":2:1", "begins with '-'", ""},
		{"[[upstream]]\nname='Home'\nurl='direct://'\n[[upstream]]\nname='home'\nurl='direct://'", ":5:1", "taken", ""},
		{"[[upstream]]\nname='Home'\nurl='direct://'\n[[group]]\nname='hOME'\nmembers=['Home']", ":5:1", "taken", ""},
		{"[[upstream]]\nname='a'\nurl='direct://'\n[[upstream]]\nname='a'\nurl='direct://'", ":5:1", "which is taken", ""},
		{"[[upstream]]\nname='a'\nurl='ftp://x'", ":3:1", "the scheme", "socks5://"},
		{"[[upstream]]\nname='a'\nurl='h3://x'", ":3:1", "not in this version", ""},
		{"[[upstream]]\nname='a'\nurl='http://h:99999'", ":3:1", "1 to 65535", ""},
		{"[[upstream]]\nname='a'\nurl='http://h/p'", ":3:1", "after host:port", ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\nsni='x'", ":4:1", "https upstreams only", ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\npassword='x'", ":4:1", "no username", ""},
		{"[[upstream]]\nname='a'\nurl='http://u:hunter2@h'\nusername='u'", ":3:1", "twice", ""},
		{"[[upstream]]\nname='a'\nurl='http://u:hunter2 %@h'", ":3:1", "cannot be read", ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\nusername='u'\npassword='hunter2\n", ":5:", "", ""},
		{"[[upstream]]\nname='a'\nurl='http://h'\nusername='u'\npassword=\"\"\"\nhunter2\\q\n\"\"\"", ":6:", "", ""},
		{"[[rule]]\nvia='direct'", ":1:", "no condition", ""},
		{"[[rule]]\nport=[1]", ":1:", "no via", ""},
		{"[[rule]]\nport=[1]\nvia='offce'\n[[upstream]]\nname='office'\nurl='direct://'", ":3:1", "names no upstream", `did you mean "office"`},
		{"[[rule]]\nport=[1]\nvia='auto'\n[[rule]]\nport=[80, '9-8']\nvia='auto'", ":5:", "a range", ""},
		{"[[rule]]\nport=[0]\nvia='auto'", ":2:", "rule 1", ""},
		{"[[rule]]\nport=[true]\nvia='auto'", ":2:", "rule 1", ""},
		{"[[rule]]\ncidr=['10.0.0.1/8']\nvia='auto'", ":2:", "bits beyond", "10.0.0.0/8?"},
		{"[[rule]]\ncidr=['10.0.0.0/33']\nvia='auto'", ":2:", "not a network", ""},
		{"[[rule]]\ndomain=['*.x.test']\nvia='auto'", ":2:", "use domain_suffix", ""},
		{"[[rule]]\nprocess=['']\nvia='auto'", ":2:", "not a program", ""},
		{strings.Repeat("[", 5000), ":1:17", "nested", ""},
		{"a" + strings.Repeat(".a", 50000) + "=1", ":1:1", "nested", ""},
		{strings.Repeat("#", 2<<20), "", "larger than 1 MiB", ""},
	}
	for _, tt := range tests {
		in := tt.in[:min(len(tt.in), 60)]
		_, err := Parse("f.toml", []byte(tt.in))
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: got %v", in, err)
			continue
		}
		text := err.Error()
		if !strings.HasPrefix(text, "f.toml"+tt.place) || !strings.Contains(e.Msg, tt.msg) || !strings.Contains(e.Hint, tt.hint) {
			t.Errorf("%q: got\n%s\nwant %q %q %q", in, text, tt.place, tt.msg, tt.hint)
		}
		if strings.Contains(text, "hunter2") {
			t.Errorf("%q: the error shows a password:\n%s", in, text)
		}
	}
}

func TestSecretNeverPrints(t *testing.T) {
	s := proxy.Secret("hunter2")
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "s", s, "u", Upstream{Password: s})
	out := b.String() + fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s) + fmt.Sprintf("%+v %#v", Upstream{Password: s}, &Upstream{Password: s})
	if strings.Contains(out, "hunter2") || strings.Contains(out, "68756e74") {
		t.Error(out)
	}
}

func TestGet(t *testing.T) {
	c, err := Parse("f", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"tun.mtu": "1400", "tun.name": "tun9", "dns.servers": `["tls://9.9.9.9", "https://dns.example/dns-query", "1.1.1.1"]`,
		"upstream.office.password": "redacted", "upstream.two.password": "env:ATLANTIC_TEST_PW", "upstream.two.sni": "",
		"rule.2.via": "block", "protect.lan": "false",
	} {
		if got, err := c.Get(key); err != nil || got != want {
			t.Errorf("%s: %q %v", key, got, err)
		}
	}
	for key, want := range map[string]string{"tun.mtuu": `"mtu"`, "tn.mtu": `"tun"`, "upstream.x.url": "no upstream", "": "no such key", "tun": "no such key", "rule.9.via": "no rule"} {
		if _, err := c.Get(key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// FT-15: whatever happens to the file, an error comes, soon, without panic.
func TestFlippedAndCut(t *testing.T) {
	start := time.Now()
	for i := range len(full) {
		_, _ = Parse("f", []byte(full[:i]))
	}
	seed := uint32(1)
	flips := 10000
	if raceEnabled {
		flips = 1000
	}
	for i := range flips {
		seed = seed*1664525 + 1013904223
		b := []byte(full)
		b[int(seed>>8)%len(b)] ^= 1 << (seed >> 29)
		if c, err := Parse("f", b); err == nil && i%10 == 0 {
			if _, err := Parse("g", []byte(c.TOML())); err != nil {
				t.Fatalf("%v\n%s", err, c.TOML())
			}
		}
	}
	t.Log(time.Since(start))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(Default().TOML()))
	f.Add([]byte("upstream=[{name='a',url='direct://'}]\nrule=[{port=[1],via='a'}]\ntun={mtu=1400}"))
	f.Add([]byte("tun.mtu=1400\n[[upstream]]\nname=\"\"\"a\"\"\"\nurl='''direct://'''"))
	f.Add([]byte("[tun]\nmtu=[[[]]]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("not an *Error: %v", err)
			}
			return
		}
		again, err := Parse("g", []byte(c.TOML()))
		if err != nil {
			t.Fatalf("%v\n%s", err, c.TOML())
		}
		if again.TOML() != c.TOML() {
			t.Fatalf("not stable:\n%s\n%s", c.TOML(), again.TOML())
		}
		edited, err := edit("f", data, []string{"tun", "mtu"}, "1500")
		if err != nil {
			return
		}
		if c, err := Parse("h", edited); err == nil && c.TUN.MTU != 1500 {
			t.Fatalf("set has no effect:\n%s", edited)
		}
	})
}
