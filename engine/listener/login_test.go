package listener

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// windows is a server of which a login with NTLM or Negotiate is that of the
// connection: every later request on it is answered as that user's (RFC 4559
// section 6). It answers with the user's name.
func windows(t *testing.T, offer string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				windowsConn(c, offer)
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); running.Wait() })
	return l.Addr().String()
}

func windowsConn(c net.Conn, offer string) {
	user, r := "nobody", bufio.NewReader(c)
	for {
		q, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		scheme, proof, _ := strings.Cut(q.Header.Get("Authorization"), " ")
		challenge := ""
		switch {
		case scheme == "NTLM" && strings.HasPrefix(proof, "TlRMTVNTUAAB"): // message 1 is answered by message 2
			user, challenge = "", "NTLM TlRMTVNTUAACAAAAAAAAADgAAAABggAAASNFZ4mrze8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		case scheme != "":
			user = scheme
		case q.URL.Path == "/login" && user == "nobody":
			challenge = offer
		}
		if challenge != "" {
			fmt.Fprintf(c, "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: %s\r\nContent-Length: 0\r\n\r\n", challenge)
			continue
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(user), user)
	}
}

// whoami asks on a connection of its own, or on a.
func (a *app) whoami(host, fields string) string {
	a.Helper()
	a.say("GET http://%s/ HTTP/1.1\r\nHost: x\r\n%s\r\n", host, fields)
	_, body, err := a.response()
	if err != nil {
		a.Error(err)
	}
	return body
}

// TestLoginIsNobodyElses: after A has logged in to a connection, nobody is
// answered as A by it; A is, on the same connection. 40 of each in parallel.
func TestLoginIsNobodyElses(t *testing.T) {
	proxy := startWith(t, Options{Handler: &direct{}})
	for _, offer := range []string{"NTLM", "Negotiate", `Basic realm="a, b", Negotiate`, "Kerberos"} {
		host := windows(t, offer)
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				a := dialT(t, proxy)
				defer a.Close()
				if got := a.whoami(host, "Authorization: Negotiate YII=\r\n"); got != "Negotiate" {
					t.Errorf("A is %q", got)
				}
				if got := a.whoami(host, ""); got != "Negotiate" {
					t.Errorf("A is %q on the connection that he has logged in to", got)
				}
			})
			wg.Go(func() {
				b := dialT(t, proxy)
				defer b.Close()
				for range 4 {
					if got := b.whoami(host, ""); got != "nobody" {
						t.Errorf("B is answered as %q", got)
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestOfferBindsTheConnection: what was offered a login is not shared either: it
// may be half-way through one. A scheme whose every request bears its proof is
// no reason.
func TestOfferBindsTheConnection(t *testing.T) {
	for offer, shared := range map[string]bool{
		"NTLM": false, "Negotiate": false, "Digest realm=\"x, NTLM\", nonce=\"1\"": true, "Basic realm=\"x\"": true,
		"Basic realm=\"\\\", NTLM\"": true, "Basic realm=x, NTLM": false, "Bearer, negotiate": false, `NTLM x="\`: false,
	} {
		t.Run(offer, func(t *testing.T) {
			d := &direct{}
			proxy, host := startWith(t, Options{Handler: d}), windows(t, offer)
			for range 2 {
				a := dialT(t, proxy)
				a.say("GET http://%s/login HTTP/1.1\r\nHost: x\r\n\r\n", host)
				if resp, _, err := a.response(); err != nil || resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != offer {
					t.Error(resp, err)
				}
			}
			if want := map[bool]int{true: 1, false: 2}[shared]; d.count() != want {
				t.Errorf("%d connections to the target, want %d", d.count(), want)
			}
		})
	}
}

// TestCurlNTLM: a real client logs in in two steps on one connection to the
// target while others ask by others.
func TestCurlNTLM(t *testing.T) {
	out, err := exec.Command("curl", "-V").Output()
	if err != nil || !strings.Contains(string(out), "NTLM") {
		t.Skip("SKIPPED: no curl with NTLM")
	}
	proxy, host := startWith(t, Options{Handler: &direct{}}), windows(t, "NTLM")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			out, err := exec.Command("curl", "-sS", "-m", "20", "-x", proxy, "--ntlm", "-u", "alice:secret", "http://"+host+"/", "http://"+host+"/again").CombinedOutput()
			if err != nil || string(out) != "NTLMNTLM" {
				t.Errorf("curl --ntlm: %q, %v", out, err)
			}
		})
		wg.Go(func() {
			out, err := exec.Command("curl", "-sS", "-m", "20", "-x", proxy, "http://"+host+"/").CombinedOutput()
			if err != nil || string(out) != "nobody" {
				t.Errorf("plain curl: %q, %v", out, err)
			}
		})
	}
	wg.Wait()
}

// TestUsersShareNothing: a connection to a target serves one user, whatever is
// on it; connections of one user share.
func TestUsersShareNothing(t *testing.T) {
	d := &direct{}
	proxy := startWith(t, Options{Handler: d, User: owners(t)})
	port := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	for i, uid := range []int{0, 65534, 65533, 65534, 0} {
		c := dialAs(t, uid, "tcp", proxy)
		a := &app{t, c, bufio.NewReader(c)}
		a.say("GET http://127.0.0.1:%s/ HTTP/1.1\r\nHost: x\r\n\r\n", port)
		if _, body, err := a.response(); err != nil || body != "ok" {
			t.Fatal(body, err)
		}
		if d.count() != min(i+1, 3) {
			t.Errorf("%d connections to the target after %d requests of three users", d.count(), i+1)
		}
	}
}
