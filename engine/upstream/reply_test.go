package upstream

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestConnectAnswerWithContent: content that a 2xx to CONNECT announces is not
// there (RFC 9110 section 9.3.6), in plain text and in TLS, with early data and
// without.
func TestConnectAnswerWithContent(t *testing.T) {
	cert, pool := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	never := false
	for _, fields := range []string{
		"Transfer-Encoding: chunked\r\n", "Content-Length: 1000\r\n", "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
		"Content-Type: text/html\r\n", "Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n", "Content-Type: text/html\r\nContent-Length: 1000\r\n",
	} {
		handle := func(c net.Conn) {
			br := bufio.NewReader(c)
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+fields+"\r\n")
			_, _ = io.Copy(c, br)
		}
		for scheme, rawURL := range map[string]string{
			"http":  "http://" + serve(t, func(c *net.TCPConn) { handle(c) }).String(),
			"https": "https://" + serve(t, overTLS(cert, handle, alpnHTTP1)).String(),
		} {
			if scheme == "https" && strings.Count(fields, "\r\n") == 2 && strings.Contains(fields, "html") {
				continue // what follows cannot be looked at without taking it: it counts as a page
			}
			for _, v := range []Verdict{EarlyRefuses, EarlyCarries} {
				u := open(t, rawURL, func(s *Spec) { s.CA, s.HTTP2 = pool, &never }, Options{})
				u.SetEarly(v)
				flowOn(t, u, getHead)
				if t.Failed() {
					t.Fatalf("%s, %q, early data %v", scheme, fields, v)
				}
			}
		}
	}
}
