package proxy

import (
	"errors"
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	for in, want := range map[string]string{
		"Proxy.Example.":                "proxy.example",
		"bücher.test":                   "xn--bcher-kva.test",
		"BÜCHER.Test":                   "xn--bcher-kva.test",
		"xn--bcher-kva.test":            "xn--bcher-kva.test",
		"straße.example":                "xn--strae-oqa.example",
		"例え。テスト":                        "xn--r8jz45g.xn--zckzah",
		"r3---sn-abc.example":           "r3---sn-abc.example",
		"my-blog-.example":              "my-blog-.example",
		"_dmarc.example":                "_dmarc.example",
		"nas":                           "nas",
		"1.2.3.4.example":               "1.2.3.4.example",
		"0x7f.example":                  "0x7f.example",
		"192.0.2.1":                     "192.0.2.1",
		"192.0.2.1.":                    "192.0.2.1",
		"１９２.0.2.1":                     "192.0.2.1",
		"[2001:DB8::1]":                 "2001:db8::1",
		"2001:db8::1":                   "2001:db8::1",
		"::ffff:192.0.2.1":              "192.0.2.1",
		strings.Repeat("a.", 126) + "a": strings.Repeat("a.", 126) + "a",
	} {
		if got, err := CleanHost(in); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "a..b", "256.1.1.1", "1.2.3", "1.2.3.4.5", "0x7f.1", "0x7f000001", "2130706433", "010.0.0.1", "1.2.3.4..", "a.b.7",
		"fe80::1%eth0", "[fe80::1%eth0]", "[192.0.2.1]", "[nas]", "[::1", "::1]", "a b", "a/b", "a@b", "a:b", "user:hunter2@host", "h%20x",
		"bü cher.test", "\xff.test", "xn--\u00fc.test", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a", "a\x00b", "*.example",
	} {
		got, err := CleanHost(in)
		var e *Error
		if !errors.As(err, &e) || e.Field != "host" {
			t.Errorf("%q is %q, %v", in, got, err)
		} else if len(in) > 4 && strings.Contains(e.Msg+e.Hint, in) {
			t.Errorf("%q is quoted: %v", in, err)
		}
	}
}

func TestParseHostPort(t *testing.T) {
	for in, want := range map[string]string{
		"a:1": "a 1", "A.": "a 443", "[::1]:2": "::1 2", "[::1]": "::1 443", "::1": "::1 443", "2001:db8::1:2": "2001:db8::1:2 443",
		"192.0.2.1:65535": "192.0.2.1 65535", "bücher.test:80": "xn--bcher-kva.test 80",
	} {
		name, addr, port, err := ParseHostPort(in, 443)
		if addr.IsValid() {
			name = addr.String()
		}
		if got := name + " " + itoa(port); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":1", "a:", "a:0", "a:65536", "a:+1", "a:-1", "a:b", "a:1:2", "[::1]1", "[::1]:", "256.1.1.1:80"} {
		if name, addr, port, err := ParseHostPort(in, 443); err == nil {
			t.Errorf("%q is %q %v %d", in, name, addr, port)
		}
	}
	if _, _, _, err := ParseHostPort("a", 0); err == nil {
		t.Error("there is no port")
	}
}

func itoa(n uint16) string { return strings.TrimPrefix(Spec{Host: "h", Port: n}.Addr(), "h:") }

func TestParseServer(t *testing.T) {
	for in, want := range map[string]string{
		"1.1.1.1":                           "udp://1.1.1.1",
		"1.1.1.1:5353":                      "udp://1.1.1.1:5353",
		"2606:4700::1":                      "udp://[2606:4700::1]",
		"[2606:4700::1]:5353":               "udp://[2606:4700::1]:5353",
		"tls://dns.example":                 "tls://dns.example",
		"TCP://9.9.9.9/":                    "tcp://9.9.9.9",
		"https://1.1.1.1":                   "https://1.1.1.1/dns-query",
		"https://dns.example:8443/abc123":   "https://dns.example:8443/redacted",
		"https://dns.example/dns-query?k=s": "https://dns.example/redacted",
		"https://bücher.test/dns-query":     "https://xn--bcher-kva.test/dns-query",
	} {
		s, err := ParseServer(in)
		if err != nil || s.String() != want {
			t.Errorf("%s: %q, %v, want %q", in, s, err, want)
			continue
		}
		if again, err := ParseServer(s.URL()); err != nil || again != s {
			t.Errorf("%s: %q became %q, %v", in, s.URL(), again, err)
		}
	}
	for _, in := range []string{
		"", "dns.example", "ftp://x", "https://", "https://u:p@x", "https://x#f", "tls://x/p", "tls://x:0", "udp://256.1.1.1",
		"fe80::1%eth0", "tcp://[fe80::1%25eth0]", "tls://1.2.3", "https://a b",
	} {
		if s, err := ParseServer(in); err == nil {
			t.Errorf("%q is %+v", in, s)
		}
	}
}

// FuzzHost: what is accepted is in a form that is accepted again, unchanged, and
// that a dialler takes.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"bücher.test", "256.1.1.1", "[::1%1]", "0X7F.1", "a.1.", "１.2.3.4", "xn--a", "⒈com"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := CleanHost(s)
		if err != nil {
			return
		}
		if again, err := CleanHost(got); err != nil || again != got {
			t.Fatalf("%q became %q, then %q, %v", s, got, again, err)
		}
		if err := (Spec{Scheme: HTTP, Host: got, Port: 1}).Validate(); err != nil {
			t.Fatalf("%q became %q: %v", s, got, err)
		}
	})
}
