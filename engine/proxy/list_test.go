package proxy

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func TestListForms(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"1.2.3.4:8080", "http 1.2.3.4 8080  "},
		{"proxy.example:8080", "http proxy.example 8080  "},
		{"localhost:3128", "http localhost 3128  "},
		{"1.2.3.4:8080:bob:pw", "http 1.2.3.4 8080 bob pw"},
		{"bob:pw@1.2.3.4:8080", "http 1.2.3.4 8080 bob pw"},
		{"bob:pw:1.2.3.4:8080", "http 1.2.3.4 8080 bob pw"},
		{"1.2.3.4:8080@bob:pw", "http 1.2.3.4 8080 bob pw"},
		// The other three with a name for a host.
		{"gw.example.com:7000:bob:pw", "http gw.example.com 7000 bob pw"},
		{"bob:pw:gw.example.com:7000", "http gw.example.com 7000 bob pw"},
		{"gw.example.com:7000@bob:pw", "http gw.example.com 7000 bob pw"},
		// Credentials that look like host and port.
		{"bob:1234:5.6.7.8:80", "http 5.6.7.8 80 bob 1234"},
		{"5.6.7.8:80:bob:1234", "http 5.6.7.8 80 bob 1234"},
		{"bob:1234@5.6.7.8:80", "http 5.6.7.8 80 bob 1234"},
		{"5.6.7.8:80@bob:1234", "http 5.6.7.8 80 bob 1234"},
		{"bob:1234@gw:80", "http gw 80 bob 1234"},
		{"gw:80:bob:1234", "http gw 80 bob 1234"},
		// Special characters in passwords.
		{"bob:p@ss:w%rd!@1.2.3.4:8080", "http 1.2.3.4 8080 bob p@ss:w%rd!"},
		{"1.2.3.4:8080:bob:p@ss:w/rd#1", "http 1.2.3.4 8080 bob p@ss:w/rd#1"},
		{"1.2.3.4:8080@bob:p@ss", "http 1.2.3.4 8080 bob p@ss"},
		{"1.2.3.4:8080:bob:a,b", "http 1.2.3.4 8080 bob a,b"},
		{"http://bob:p%40ss%3Aw@1.2.3.4:8080/", "http 1.2.3.4 8080 bob p@ss:w"},
		{"http://bob:100%@1.2.3.4:8080", "http 1.2.3.4 8080 bob 100%"},
		{"customer-bob-cc-US:pw@pr.oxylabs.io:7777", "http pr.oxylabs.io 7777 customer-bob-cc-US pw"},
		{"geo.iproyal.com:12321:bob:pw_country-br_session-sgn34f3e_lifetime-10m", "http geo.iproyal.com 12321 bob pw_country-br_session-sgn34f3e_lifetime-10m"},
		// Schemes.
		{"socks5://1.2.3.4:1080:bob:pw", "socks5 1.2.3.4 1080 bob pw"},
		{"SOCKS5h://bob:pw@1.2.3.4:1080", "socks5 1.2.3.4 1080 bob pw"},
		{"https://gw.example:443", "https gw.example 443  "},
		// IPv6.
		{"[2001:db8::1]:8080", "http 2001:db8::1 8080  "},
		{"[2001:db8::1]:8080:bob:pw", "http 2001:db8::1 8080 bob pw"},
		{"bob:pw@[2001:db8::1]:8080", "http 2001:db8::1 8080 bob pw"},
		{"bob:pw:[2001:db8::1]:8080", "http 2001:db8::1 8080 bob pw"},
		{"[2001:db8::1]:8080@bob:pw", "http 2001:db8::1 8080 bob pw"},
		// Columns, comments, case.
		{"1.2.3.4,8080", "http 1.2.3.4 8080  "},
		{`"1.2.3.4", "8080", "bob", "pw"`, "http 1.2.3.4 8080 bob pw"},
		{"1.2.3.4:8080 # fast", "http 1.2.3.4 8080  "},
		{"\t1.2.3.4:8080  ", "http 1.2.3.4 8080  "},
		{"GW.Example.:8080", "http gw.example 8080  "},
	} {
		got, skipped, err := ParseList([]byte(c.line), "http")
		if err != nil || len(got) != 1 || len(skipped) != 0 {
			t.Errorf("%s: %v, %v, %v", c.line, got, skipped, err)
			continue
		}
		g := got[0]
		if s := fmt.Sprintf("%s %s %d %s %s", g.Scheme, g.Host, g.Port, g.Username, g.Password.Reveal()); s != c.want {
			t.Errorf("%s: %q, want %q", c.line, s, c.want)
		}
	}
}

func TestListSkipsWhatIsNoProxy(t *testing.T) {
	text := "\ufeff# a list\r\n1.2.3.4:80\r\n\r\n; note\n// note\nhunter2\n1.2.3.4:80, 5.6.7.8:81,\nh:0\nsocks4://1.2.3.4:1\nh:70000\n1.2.3.4:80:bob\n<html>\nhost name:80\n2001:db8::1:80\n2001:db8::a:80\n1.2.3.400:80\n"
	good := ""
	for i := range 20 {
		good += fmt.Sprintf("10.0.0.%d:80\n", i)
	}
	if _, _, err := ParseList([]byte(text), "socks5"); err == nil || !strings.Contains(err.Error(), "9 of 11 lines are no proxies") {
		t.Errorf("mostly none: %v", err)
	}
	text += good
	got, skipped, err := ParseList([]byte(text), "socks5")
	if err != nil || len(got) != 22 || got[1].Host != "5.6.7.8" || got[1].Scheme != "socks5" {
		t.Fatalf("%v, %v", got, err)
	}
	var lines []int
	for _, e := range skipped {
		lines = append(lines, e.Line)
		if strings.Contains(e.Error(), "hunter2") {
			t.Errorf("it quotes the line: %v", e)
		}
	}
	if fmt.Sprint(lines) != "[6 8 9 10 11 12 13 14 15 16]" {
		t.Errorf("skipped %v", skipped)
	}
}

// TestListFiles: whole lists, as vendors, spreadsheets and subscriptions give
// them.
func TestListFiles(t *testing.T) {
	const plain = "1.2.3.4:80:bob:pw\nsocks5://5.6.7.8:1080\n"
	b64 := base64.StdEncoding.EncodeToString([]byte(plain))
	for name, c := range map[string]struct{ text, want string }{
		"quoted CSV":          {"\"1.2.3.4\",\"80\",\"bob\",\"p,w \"\"x\"\" #1\"\r\n", `http://bob@1.2.3.4:80 p,w "x" #1`},
		"CSV, user first":     {"bob,pw,gw.example,80\n", "http://bob@gw.example:80 pw"},
		"CSV with scheme":     {"socks5,1.2.3.4,1080\n1.2.3.4,80,HTTP\nhttps,gw.example,443,bob,pw\n", "socks5://1.2.3.4:1080 http://1.2.3.4:80 https://bob@gw.example:443 pw"},
		"CSV header":          {"IP Address,Port,Username,Password\r\n1.2.3.4,80,bob,pw\r\n5.6.7.8,81,,\r\n", "http://bob@1.2.3.4:80 pw http://5.6.7.8:81"},
		"CSV many columns":    {"\"ip\",\"country\",\"port\",\"protocols\",\"speed\"\n\"1.2.3.4\",\"US\",\"1080\",\"socks5\",\"7\"\n", "socks5://1.2.3.4:1080"},
		"CSV proxy column":    {"proxy,country\n1.2.3.4:80,US\nbob:pw@5.6.7.8:81,DE\n", "http://1.2.3.4:80 http://bob@5.6.7.8:81 pw"},
		"CSV semicolons":      {"host;port;user;pass\n1.2.3.4;80;bob;pw\n", "http://bob@1.2.3.4:80 pw"},
		"tabs":                {"1.2.3.4\t80\n5.6.7.8\t81\tbob\tpw\n", "http://1.2.3.4:80 http://bob@5.6.7.8:81 pw"},
		"no port":             {"https://gw.example\nhttp://bob:pw@1.2.3.4/\nsocks5h://[2001:db8::1]\n", "https://gw.example:443 http://bob@1.2.3.4:80 pw socks5://[2001:db8::1]:1080"},
		"international":       {"bücher.test:80\nhttps://BÜCHER.test\n", "http://xn--bcher-kva.test:80 https://xn--bcher-kva.test:443"},
		"base64":              {b64, "http://bob@1.2.3.4:80 pw socks5://5.6.7.8:1080"},
		"base64 in lines":     {b64[:20] + "\r\n" + b64[20:] + "\n", "http://bob@1.2.3.4:80 pw socks5://5.6.7.8:1080"},
		"base64 without ends": {"\ufeff" + strings.TrimRight(b64, "="), "http://bob@1.2.3.4:80 pw socks5://5.6.7.8:1080"},
		"base64 for URLs":     {base64.RawURLEncoding.EncodeToString([]byte("1.2.3.4:80:bob:???>>>")), "http://bob@1.2.3.4:80 ???>>>"},
		"remarks":             {"socks5://bob:pw@1.2.3.4:1080#Paris%201\nsocks://5.6.7.8:1080#x\n", "socks5://bob@1.2.3.4:1080 pw socks5://5.6.7.8:1080"},
		"other kinds":         {"socks4://1.2.3.4:1\nss://YWVz@5.6.7.8:2#x\nvmess://eyJhIjoxfQ==\nsocks5://1.2.3.4:1080\n", "socks5://1.2.3.4:1080"},
		"spaces":              {"1.2.3.4   80\n5.6.7.8 81 bob pw\n", "http://1.2.3.4:80 http://bob@5.6.7.8:81 pw"},
		"CR":                  {"1.2.3.4:80\r5.6.7.8:81\r", "http://1.2.3.4:80 http://5.6.7.8:81"},
	} {
		got, skipped, err := ParseList([]byte(c.text), "http")
		if err != nil || len(skipped) > 0 && name != "other kinds" {
			t.Errorf("%s: %v, %v", name, skipped, err)
		}
		var all []string
		for _, s := range got {
			text := strings.Replace(s.String(), ":[redacted]", "", 1)
			if s.Password != "" {
				text += " " + s.Password.Reveal()
			}
			all = append(all, text)
		}
		if text := strings.Join(all, " "); text != c.want {
			t.Errorf("%s:\n%s, want\n%s", name, text, c.want)
		}
	}
	for _, line := range []string{"256.1.1.1:80", "1.2.3:80:bob:pw", "bob:pw@1.2.3.4.5:80", "http://0x7f.1", "0x7f.1,80", "ip,port\n1.2.3,80"} {
		if got, _, err := ParseList([]byte(line), "http"); err == nil || strings.Contains(line, "80") && strings.Contains(err.Error(), "pw") {
			t.Errorf("%s is %v, %v", line, got, err)
		}
	}
}

func TestListRefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{"", "\n\n# x\n", "<!doctype html>\n<p>busy</p>", "{\"error\": \"quota\"}", "\x00\x01"} {
		if got, _, err := ParseList([]byte(text), "http"); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
	if _, _, err := ParseList(make([]byte, MaxListBytes+1), "http"); err == nil {
		t.Error("no bound")
	}
	var b strings.Builder
	for i := range MaxListProxies + 5 {
		fmt.Fprintf(&b, "10.%d.%d.%d:80\n", i>>16, i>>8&255, i&255)
	}
	got, skipped, err := ParseList([]byte(b.String()), "http")
	if err != nil || len(got) != MaxListProxies || len(skipped) != 1 {
		t.Errorf("%d proxies, %v, %v", len(got), skipped, err)
	}
}

func FuzzList(f *testing.F) {
	f.Add("1.2.3.4:80:bob:pw\nbob:pw@[::1]:80,h:1", "http")
	f.Add("socks5h://a:b@c:1\r\n#x\n\"a\",\"1\"", "socks5")
	f.Fuzz(func(t *testing.T, text, scheme string) {
		got, skipped, err := ParseList([]byte(text), scheme)
		if err == nil && len(got) == 0 {
			t.Fatal("nothing, and no error")
		}
		for _, g := range got {
			if err := g.Validate(); err != nil {
				t.Fatalf("%+v: %v", g, err)
			}
			// What was read can be written and read again.
			if g.Username == "" && g.Password == "" {
				again, _, err := ParseList([]byte(g.Scheme+"://"+g.Addr()), "http")
				if err != nil || len(again) != 1 || again[0] != g {
					t.Fatalf("%+v became %+v, %v", g, again, err)
				}
			}
		}
		if len(skipped) > maxListErrors+1 {
			t.Fatal(len(skipped))
		}
	})
}
