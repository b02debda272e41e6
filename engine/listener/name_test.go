package listener

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestNames: an international name is asked as resolvers know it, and a mistyped
// address is refused and not asked as a name, by each way into the proxy.
func TestNames(t *testing.T) {
	h := &direct{}
	proxy := start(t, h)
	port := origin(t, func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "hello") })
	socks := func(host string) []byte {
		var n int
		fmt.Sscan(port, &n)
		return append([]byte("\x05\x01\x00\x05\x01\x00\x03"+string(rune(len(host)))+host), byte(n>>8), byte(n))
	}
	const get = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
	ways := map[string]func(host string) []byte{
		"connect": func(host string) []byte {
			return []byte("CONNECT " + host + ":" + port + " HTTP/1.1\r\nHost: h\r\n\r\n" + get)
		},
		"http": func(host string) []byte {
			return []byte("GET http://" + host + ":" + port + "/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		},
		"socks5": func(host string) []byte { return append(socks(host), get...) },
	}
	for way, request := range ways {
		before := h.count()
		if got := talk(t, proxy, request("bücher.test")); !strings.Contains(got, "hello") {
			t.Errorf("%s: %q", way, got)
		}
		if name := h.last().Target.Name; h.count() != before+1 || name != "xn--bcher-kva.test" {
			t.Errorf("%s: asked for %q", way, name)
		}
		before = h.count()
		for _, host := range []string{"256.1.1.1", "1.2.3", "1.2.3.4.5", "0x7f.1"} {
			if got := talk(t, proxy, request(host)); strings.Contains(got, "hello") || h.count() != before {
				t.Errorf("%s: %s was asked: %q", way, host, got)
			}
		}
	}
}
