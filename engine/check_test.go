package engine

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/config"
	"github.com/atlanticproxy/atlanticproxy/platform/platformtest"
)

// startable says whether `config check` takes the text, and whether an engine can
// be made of it.
func startable(t testing.TB, text string) (checked, made error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "atlantic.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		return err, nil
	}
	e, err := New(Options{Config: cfg, Host: platformtest.New(), StateDir: dir, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		e.ups.close()
		e.names.close()
	}
	return nil, err
}

// TestCheckMeansRun: what `config check` calls valid starts, and what cannot
// start is refused once, at its place, with a hint.
func TestCheckMeansRun(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	up := func(lines ...string) string {
		return "[[upstream]]\nname = \"a\"\n" + strings.Join(lines, "\n") + "\n"
	}
	user, long := `username = "u"`, strings.Repeat("x", 256)
	secret := func(content string) string {
		return fmt.Sprintf("password = %q", "file:"+file(fmt.Sprint("pw", len(content)), content))
	}
	group := "[[group]]\nname = \"g\"\nmembers = [\"a\"]\n"
	for name, c := range map[string]struct {
		text  string
		valid bool
		line  int
	}{
		"plain":                  {up(`url = "socks5://u:p@h"`), true, 0},
		"user with a colon":      {up(`url = "http://h"`, `username = "u:x"`, `password = "p"`), false, 4},
		"the same in the url":    {up(`url = "http://u%3Ax:p@h"`), false, 3},
		"the same for socks5":    {up(`url = "socks5://h"`, `username = "u:x"`, `password = "p"`), true, 0},
		"tab in a password":      {up(`url = "http://h"`, user, `password = "p\tq"`), false, 5},
		"the same in a group":    {up(`url = "socks5://h"`, user, `password = "p\tq"`) + group, false, 5},
		"newline in a user":      {up(`url = "socks5://h"`, `username = "u\n"`), false, 4},
		"255 bytes":              {up(`url = "socks5://h"`, user, `password = "`+long[1:]+`"`) + group, true, 0},
		"256 bytes for socks5":   {up(`url = "socks5://h"`, user, `password = "`+long+`"`), false, 5},
		"256 bytes for http":     {up(`url = "http://h"`, user, `password = "`+long+`"`) + group, true, 0},
		"5000 bytes for http":    {up(`url = "https://h"`, user, `password = "`+strings.Repeat(long, 20)+`"`), false, 5},
		"secret with its ends":   {up(`url = "http://h"`, user, secret("\ufeffp4ssword\r\n\n")) + group, true, 0},
		"secret of two lines":    {up(`url = "http://h"`, user, secret("one\ntwo\n")) + group, false, 5},
		"secret in UTF-16":       {up(`url = "http://h"`, user, secret("\xff\xfep\x00w\x00")), false, 5},
		"secret of 300 bytes":    {up(`url = "socks5://h"`, user, secret(strings.Repeat("x", 300))), false, 5},
		"secret without user":    {up(`url = "socks5://h"`, secret("pw")), false, 4},
		"zone":                   {up(`url = "socks5://[fe80::1%25eth0]:1080"`), false, 3},
		"zone unescaped":         {up(`url = "socks5://[fe80::1%eth0]:1080"`), false, 3},
		"zone of a DNS server":   {"[dns]\nservers = [\"fe80::1%eth0\"]\n", false, 2},
		"zone in DNS url":        {"[dns]\nservers = [\"tcp://[fe80::1%25eth0]\"]\n", false, 2},
		"DNS server with port":   {"[dns]\nservers = [\"[2001:db8::1]:53\", \"2001:db8::1\", \"9.9.9.9:53\"]\n", true, 0},
		"DNS server upper case":  {"[dns]\nservers = [\"HTTPS://DNS.example/q\", \"tls://bücher.test\"]\n", true, 0},
		"zone of the listener":   {"[listen]\nproxy = \"[::1%lo]:7890\"\n", false, 2},
		"no CA":                  {up(`url = "https://h"`, `ca = "/nowhere/ca.pem"`), false, 4},
		"CA that is none":        {up(`url = "https://h"`, fmt.Sprintf("ca = %q", file("ca", "hello"))), false, 4},
		"CA is a directory":      {up(`url = "https://h"`, fmt.Sprintf("ca = %q", dir)), false, 4},
		"provider's CA":          {"[[provider]]\nname = \"p\"\nkind = \"oxylabs\"\nusername = \"u\"\npassword = \"p\"\nca = \"/nowhere\"\n", false, 6},
		"provider's password":    {"[[provider]]\nname = \"p\"\nkind = \"oxylabs\"\nusername = \"u\"\npassword = \"p\\tq\"\n", false, 5},
		"provider's user":        {"[[provider]]\nname = \"p\"\nkind = \"oxylabs\"\nusername = \"u:v\"\npassword = \"p\"\n", false, 4},
		"provider's long user":   {"[[provider]]\nname = \"p\"\nkind = \"oxylabs\"\nscheme = \"socks5\"\nusername = \"" + long[:240] + "\"\npassword = \"p\"\n", false, 5},
		"provider's host":        {"[[provider]]\nname = \"p\"\nkind = \"generic\"\nusername = \"u\"\npassword = \"p\"\nhost = \"256.1.1.1\"\nport = 1\n", false, 6},
		"provider's format":      {"[[provider]]\nname = \"p\"\nkind = \"generic\"\nusername = \"u\"\npassword = \"p\"\nhost = \"h\"\nport = 1\nusername_format = \"{user\"\n", false, 8},
		"provider's country":     {"[[provider]]\nname = \"p\"\nkind = \"oxylabs\"\nusername = \"u\"\npassword = \"p\"\ncountry = \"USA\"\n", false, 6},
		"provider's life":        {"[[provider]]\nname = \"p\"\nkind = \"oxylabs\"\nusername = \"u\"\npassword = \"p\"\nsession = \"sticky-25h\"\n", false, 6},
		"list of an odd url":     {"[[provider]]\nname = \"p\"\nkind = \"list\"\nurl = \"https://[::1%25lo]/x\"\n", false, 4},
		"mistyped address":       {up(`url = "http://256.1.1.1:8080"`), false, 3},
		"short address":          {up(`url = "http://1.2.3:8080"`), false, 3},
		"hexadecimal address":    {up(`url = "http://0x7f.1:8080"`), false, 3},
		"host with odd bytes":    {up(`url = "http://a$b!c"`), false, 3},
		"host with an empty end": {up(`url = "http://a..b"`), false, 3},
		"international host":     {up(`url = "http://bücher.test"`) + group, true, 0},
		"underscores":            {up(`url = "http://my_proxy.test"`) + group, true, 0},
		"hyphen at the end":      {up(`url = "http://my-.test"`) + group, true, 0},
		"direct in a group":      {up(`url = "direct://"`) + group, false, 6},
		"sni with a zone":        {up(`url = "https://h"`, `sni = "fe80::1%1"`), false, 4},
		"sni":                    {up(`url = "https://h"`, `sni = "Bücher.test"`), true, 0},
		"rule for an address":    {"[[rule]]\ndomain = [\"256.1.1.1\"]\nvia = \"direct\"\n", false, 2},
		"rule with a space":      {"[[rule]]\ndomain_suffix = [\"a b\"]\nvia = \"direct\"\n", false, 2},
		"rule with bad A-label":  {"[[rule]]\ndomain = [\"xn--\\u00fc\"]\nvia = \"direct\"\n", false, 2},
		"rule with a long name":  {"[[rule]]\ndomain = [\"" + strings.Repeat("ü", 60) + ".test\"]\nvia = \"direct\"\n", false, 2},
		"rule with a dot":        {"[[rule]]\ndomain_suffix = [\".\"]\nvia = \"direct\"\n", false, 2},
		"rule with a process":    {"[[rule]]\nprocess = [\" \"]\nvia = \"direct\"\n", false, 2},
		"rule with a zone":       {"[[rule]]\ncidr = [\"fe80::1%1\"]\nvia = \"direct\"\n", false, 2},
	} {
		checked, made := startable(t, c.text)
		if made != nil {
			t.Errorf("%s: valid, but does not start: %v", name, made)
		}
		if c.valid != (checked == nil) {
			t.Errorf("%s: valid %v: %v", name, checked == nil, checked)
			continue
		}
		if checked == nil {
			continue
		}
		text := checked.Error()
		if !strings.Contains(text, fmt.Sprintf(".toml:%d:", c.line)) || strings.Count(text, "hint:") > 1 {
			t.Errorf("%s: want line %d:\n%s", name, c.line, text)
		}
		for _, word := range []string{`upstream "a"`, `provider "p"`, `rule 1`} {
			if strings.Count(text, word) > 1 {
				t.Errorf("%s: it says so twice:\n%s", name, text)
			}
		}
	}
}

// FuzzCheckMeansRun: there is no text in any of these places that `config check`
// takes and that the service does not start with.
func FuzzCheckMeansRun(f *testing.F) {
	f.Add("socks5://h:1", "u", "p", "", "1.1.1.1", "a.test", "g.test")
	f.Add("https://u:p@[2001:db8::1]", "", "", "x.test", "https://dns.test/q?k", "bücher.test", "10.0.0.1:80:u:p")
	f.Add("http://a_b-", "u\t", strings.Repeat("p", 300), "*", "tcp://[fe80::1%25a]", ".x", "\x00")
	f.Fuzz(func(t *testing.T, url, user, pass, sni, server, domain, host string) {
		q := func(s string) string { return config.Quote(strings.ToValidUTF8(s, "?")) }
		text := "[dns]\nservers = [" + q(server) + "]\n[[upstream]]\nname = \"a\"\nurl = " + q(url) + "\n"
		for key, value := range map[string]string{"username": user, "password": pass, "sni": sni} {
			if value != "" {
				text += key + " = " + q(value) + "\n"
			}
		}
		if host != "" {
			text += "[[provider]]\nname = \"p\"\nkind = \"generic\"\nport = 1\nusername = " + q(user) + "\npassword = " + q(pass) + "\nhost = " + q(host) + "\n"
		}
		members := `"a"`
		if host != "" {
			members += `, "p"`
		}
		text += "[[group]]\nname = \"g\"\nmembers = [" + members + "]\n[[rule]]\ndomain = [" + q(domain) + "]\ndomain_suffix = [" + q(domain) + "]\nvia = \"g\"\n"
		if checked, made := startable(t, text); checked == nil && made != nil {
			t.Fatalf("valid, but does not start: %v\n%s", made, text)
		}
	})
}
