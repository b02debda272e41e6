//go:build unix

package config

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
)

// canaries stand for secrets: one as people choose it, one that has to be escaped.
var canaries = []string{"Hunter2CanarySecret9", "p@ss/W:rd%9+Canary=7"}

// leaks says that a text holds the secret in some form.
func leaks(text, secret string) bool {
	for _, form := range []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), hex.EncodeToString([]byte(secret)), Quote(secret),
		base64.RawStdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)),
	} {
		if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
			return true
		}
	}
	return false
}

// misplaced are the ways in which a secret gets into a text where it does not
// belong, or is not read.
func misplaced(s string) []string {
	e := url.PathEscape(s)
	return []string{
		s, s + "\x00", "\t" + s, "user:" + s, "user:" + s + "@host", "user:" + s + "@host:1080", "host:1080:user:" + s,
		"socks5://127.0.0.1:1080:user:" + s, "socks5://user:" + e + "@host", "socks5://user:" + e + "@", "http://user:" + e + "@ho st", "http://user:" + e + "@h:0",
		"http://" + e + ":x@h:99999", "http://" + e + "@h/x?y", "ftp://user:" + e + "@h", e + "://h", "http://h:" + e, "http://" + e + ":1:2", "//" + s,
		"http://user:" + s + "@256.1.1.1", "http://u%zz:" + s + "@h", "direct://" + e, "h3://u:" + e + "@h", "https://lists.test/" + e, "https://lists.test/?token=" + e,
		"https://" + e + "@lists.test/x", "https://dns.test/" + e, "https://u:" + e + "@dns.test/", "tls://dns.test/" + e, "file:" + s, "env:" + s, "file:/nowhere/" + s, "env:NO_SUCH_" + s, "/nowhere/" + s,
		"{user}-" + s + "-{" + s + "}", "{" + s, "sticky-" + s, "*." + s, s + ".256", "10.0.0.0/" + s, s + "-9", strings.Repeat(s, 20),
	}
}

// public are the keys whose values, where they are valid, the configuration shows.
var public = []string{
	"name", "username", "sni", "ca", "template", "scheme", "host", "country", "state", "city", "zone", "isp", "username_format", "password_format",
	"session", "members", "domain", "domain_suffix", "process", "via", "cidr", "port", "proxy",
}

// TestSecretsStayOut: wherever in a file or a command a secret stands, no error
// and no rendering has it.
func TestSecretsStayOut(t *testing.T) {
	lists := []string{"servers", "members", "domain", "domain_suffix", "cidr", "port", "process"}
	base := map[string]map[string]string{
		"upstream": {"name": "'a'", "url": "'https://h'"},
		"provider": {"name": "'p'", "kind": "'generic'", "host": "'h'", "port": "1", "username": "'u'"},
		"group":    {"name": "'g'", "members": "['z']"},
		"rule":     {"domain": "['d.test']", "via": "'direct'"},
	}
	path := write(t, 0o600, "")
	for _, secret := range canaries {
		for _, section := range schema("") {
			for _, key := range append(schema(section), "pasword") {
				for _, value := range misplaced(secret) {
					if key == "name" && IsName(value) || section == "provider" && key == "url" && strings.HasPrefix(value, "/") {
						continue // names are for showing, and so are paths
					}
					text := "[[upstream]]\nname='z'\nurl='http://h'\n"
					header := "[" + section + "]\n"
					if base[section] != nil {
						header = "[" + header[:len(header)-1] + "]\n"
					}
					literal := Quote(value)
					if slices.Contains(lists, key) {
						literal = "[" + literal + "]"
					}
					text += header + key + " = " + literal + "\n"
					for k, v := range base[section] {
						if k != key && !(key == "url" && section == "provider") {
							text += k + " = " + v + "\n"
						}
					}
					if key == "url" && section == "provider" {
						text += "name = 'p'\nkind = 'list'\n"
					}
					checkSilent(t, path, section+"."+key, text, secret, slices.Contains(public, key))
				}
			}
		}
		for _, text := range []string{
			secret, secret + " = 1", "password = " + secret, "[" + secret + "]", "[[upstream]]\npassword = \"" + secret, "[[upstream]]\npassword = '" + secret + "' '" + secret + "'",
			"[[upstream]]\npassword = \"\"\"\n" + secret + "\\q\n\"\"\"", "[[upstream]]\npassword = \"\"\"\nname = " + secret, "\"" + secret + "\" = 1", "tun.\"" + secret + "\" = 1",
			"[tun]\n\"" + secret + "\".x = 1", "[[upstream]]\nname='a'\nurl='http://h'\npassword = ['" + secret + "']", "[[upstream]]\npassword = {x = '" + secret + "'}",
			"[tun]\nmtu = '" + secret + "'\nmtu = 1", "upstream = '" + secret + "'", "upstream = [{name = 'a', pasword = '" + secret + "'}]", "[dns]\nservers = [\n'1.1.1.1',\n'" + secret + "'\n]",
			"[upstream." + secret + "]\nurl = 1", "[listen]\nproxy = \"\\q" + secret + "\"", "[tun]\nenabled = \"" + secret + "\"", "[tun]\nenabled = 1979-05-27T" + secret,
		} {
			checkSilent(t, path, "text", text, secret, false)
		}
	}
}

// checkSilent loads, shows and edits text, and looks for the secret in what comes
// of that.
func checkSilent(t *testing.T, path, what, text, secret string, shown bool) {
	t.Helper()
	c, err := Parse("f.toml", []byte(text))
	if err == nil { // what Load adds
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		c, err = Load(path)
	}
	var said string
	switch {
	case err != nil:
		said = err.Error()
	case !shown:
		said = c.TOML() + fmt.Sprintf("%+v %#v", c.Providers, c.Upstreams)
	}
	if leaks(said, secret) {
		t.Errorf("%s: the secret shows in\n%s\nof\n%s", what, said, text)
	}
	if err == nil && os.Chmod(path, 0o644) == nil {
		if _, err := Load(path); err != nil && leaks(err.Error(), secret) {
			t.Errorf("%s: the secret shows in %v", what, err)
		}
	}
}

// TestSetStaysSilent: nor has an error of config set or get.
func TestSetStaysSilent(t *testing.T) {
	const text = "[[upstream]]\nname='a'\nurl='https://h'\n[[provider]]\nname='p'\nkind='oxylabs'\nusername='u'\npassword='x'\n"
	path := write(t, 0o600, text)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range canaries {
		for _, value := range misplaced(secret) {
			for _, key := range []string{"tun.enabled", "tun.mtu", "tun.name", "dns.servers", "upstream.a.url", "upstream.a.pasword", "upstream.a.username",
				"upstream.a.sni", "upstream.a.pool", "provider.p.country", "provider.p.port", "provider.p.session", "provider.p.password"} {
				if err := Set(path, key, value); err == nil {
					err = os.WriteFile(path, []byte(text), 0o600)
					if err != nil {
						t.Fatal(err)
					}
				} else if leaks(err.Error(), secret) {
					t.Errorf("set %s: %v", key, err)
				}
			}
			for _, key := range []string{value, "tun." + value, "upstream." + value + ".url", "upstream.a." + value} {
				if err := Set(path, key, "x"); err != nil && leaks(err.Error(), secret) {
					t.Errorf("set %s: %v", key, err)
				}
				if _, err := c.Get(key); err != nil && leaks(err.Error(), secret) {
					t.Errorf("get %s: %v", key, err)
				}
			}
		}
	}
}

// TestListAddressesAreSecret: one that may hold a token stands in a private file.
func TestListAddressesAreSecret(t *testing.T) {
	for address, private := range map[string]bool{
		"https://lists.test/all.txt": false,
		"https://lists.test":         false,
		"/etc/atlantic/list.txt":     false,
		"https://raw.lists.test/TheUser/PROXY-List/master/socks5.txt":  false,
		"https://lists.test/all.txt?token=abc":                         true,
		"https://user:pw@lists.test/all.txt":                           true,
		"https://lists.test/s3cr3t-t0ken/list.txt":                     true,
		"https://lists.test/api/v2/list/download/abcdefghijklmnopqrst": true,
	} {
		text := "[[provider]]\nname='p'\nkind='list'\nurl='" + address + "'\n"
		_, err := Load(write(t, 0o644, text))
		if private != (err != nil) || err != nil && !strings.Contains(err.Error(), "atlantic.toml:4:1: provider \"p\": a list's address") {
			t.Errorf("%s: %v", address, err)
		}
		c, err := Load(write(t, 0o600, text))
		if err != nil {
			t.Fatal(err)
		}
		if private && strings.Contains(c.TOML(), address) {
			t.Errorf("%s shows in\n%s", address, c.TOML())
		}
	}
}
