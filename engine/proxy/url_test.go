package proxy

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSecretNeverShows(t *testing.T) {
	const pw = "hunter2"
	s, err := ParseURL("name", "http://user:"+pw+"@host")
	if err != nil || s.Password.Reveal() != pw {
		t.Fatal(err)
	}
	var log bytes.Buffer
	l := slog.New(slog.NewTextHandler(&log, nil))
	l.Info("x", "spec", s, "secret", s.Password)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "spec", s, "secret", s.Password)
	text := log.String() + s.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		text += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, s.Password) + fmt.Sprintf(verb, &s)
	}
	b, _ := s.Password.MarshalText()
	text += string(b)
	if strings.Contains(text, pw) || strings.Contains(text, fmt.Sprintf("%x", pw)) || !strings.Contains(text, "[redacted]") {
		t.Fatal(text)
	}
	for _, bad := range []string{"http://u:" + pw + "@ho st", "http://u:" + pw + "%zz@h", "ftp://u:" + pw + "@h", "http://u:" + pw + "@h/x", "http://u:" + pw + "@h:0", "http://:" + pw + "/@h:x"} {
		if _, err := ParseURL("n", bad); err == nil || strings.Contains(err.Error(), pw) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]string{
		"direct://":                    "direct://",
		"http://h":                     "http://h:80",
		"HTTPS://H.Example.":           "https://h.example:443",
		"socks5h://1.2.3.4":            "socks5://1.2.3.4:1080",
		"socks5://[::1]:9":             "socks5://[::1]:9",
		"http://u:p%40%3A%2F@h:8080/":  "http://u:[redacted]@h:8080",
		"http://caf%C3%A9:na%C3%AFf@h": "http://caf%C3%A9:[redacted]@h:80",
	} {
		s, err := ParseURL("n", raw)
		if err != nil || s.String() != want {
			t.Errorf("%s: %q %v", raw, s.String(), err)
		}
	}
	if s, _ := ParseURL("n", "socks5://u%40x:p%40%3A%2F%25@h"); s.Username != "u@x" || s.Password.Reveal() != "p@:/%" {
		t.Errorf("credentials %q %q", s.Username, s.Password.Reveal())
	}
	long := strings.Repeat("x", 256)
	for _, raw := range []string{
		"", "h:1", "//h", "ftp://h", "http://", "http://h:0", "http://h:65536", "http://h:x", "http://h/p", "http://h?q", "http://h#f",
		"direct://h", "socks5://" + long + ":p@h", "socks5://u:" + long + "@h", "socks5://:p@h", "http://a%3Ab:p@h", "http://a:p%0A@h",
		"http://u@h b", "http://" + strings.Repeat("a.", 200) + "h",
	} {
		if s, err := ParseURL("n", raw); err == nil {
			t.Errorf("%q is accepted: %+v", raw, s)
		}
	}
	for raw, want := range map[string]string{"h3://h": "h3 is not in this version", "masque://u:p@h": "masque is not in this version", "ftp://h": "none of http, https"} {
		if _, err := ParseURL("n", raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", raw, err, want)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"direct://", "http://u:p@h:1", "socks5://[::1]", "https://%", "socks5h://u%00:p@h", "http://[fe80::1%25eth0]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		s, err := ParseURL("n", raw)
		if err != nil {
			return
		}
		if err := s.Validate(); err != nil {
			t.Fatalf("%q parses to what New refuses: %v", raw, err)
		}
		again, err := ParseURL("n", strings.Replace(s.String(), "[redacted]", "x", 1))
		if err != nil || again.Host != s.Host || again.Port != s.Port || again.Username != s.Username {
			t.Fatalf("%q → %q → %q: %v", raw, s, again, err)
		}
	})
}
