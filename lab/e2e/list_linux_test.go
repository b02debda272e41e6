package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// TestListAlone: a machine whose only upstream is a list from the web comes up the
// first time, and again when the list's server has nothing but a page to say.
func TestListAlone(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	p, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.SOCKS5, Port: 1080, User: "u", Password: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	var ln net.Listener
	at := netip.AddrPortFrom(lab.Upstream4(7), 80).String()
	if err := l.In(lab.Internet, func() (err error) { ln, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	var broken atomic.Bool
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Second)
		if broken.Load() {
			fmt.Fprint(w, "<html>try again later</html>")
			return
		}
		fmt.Fprintf(w, "host,port,username,password,type\r\n%q,%d,u,s3cret,socks5\r\n", p.Addr().Addr(), p.Addr().Port())
	})}
	go web.Serve(ln)
	t.Cleanup(func() { web.Close() })
	s := start(t, l, fmt.Sprintf("[[provider]]\nname = \"list\"\nkind = \"list\"\nurl = \"http://%s/get?token=t0ken\"\n", at), "--up")
	s.await(api.On)
	works(t, l)
	s.stop()

	broken.Store(true)
	s.launch()
	s.await(api.On)
	works(t, l)
	for deadline := time.Now().Add(10 * time.Second); len(s.status().Warnings) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is said of the list")
		}
	}
	for _, args := range [][]string{{"status"}, {"upstreams"}} {
		if out := s.must(args...); !strings.Contains(out, "web page") {
			t.Errorf("atlantic %s does not say why:\n%s", args[0], out)
		}
	}
	for _, args := range [][]string{{"status", "--json"}, {"upstreams", "--json"}, {"config", "show"}, {"config", "get", "provider.list.url", "--file", s.config()}} {
		if out, stderr, _ := s.cli(args...); strings.Contains(out+stderr, "t0ken") || strings.Contains(out+stderr, "s3cret") {
			t.Errorf("atlantic %s shows a secret:\n%s%s", args[0], out, stderr)
		}
	}
	if strings.Contains(s.out.String(), "t0ken") || strings.Contains(s.out.String(), "s3cret") {
		t.Errorf("the log shows a secret:\n%s", s.out)
	}
}
