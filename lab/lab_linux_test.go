package lab_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
)

func TestTraffic(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	for _, to := range []netip.Addr{lab.Origin4(), lab.Origin6()} {
		if _, err := l.Ping(lab.Client, to); err != nil {
			t.Errorf("ping %s: %v", to, err)
		}
	}
	const size = 3 << 20
	for _, url := range []string{"http://v4.test/bytes?n=3145728&seed=7", "http://v6.test/bytes?n=3145728&seed=7", "https://example.test/bytes?n=3145728&seed=7"} {
		f, err := l.Fetch(ctx, lab.Client, url, lab.FetchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if f.Status != 200 || f.Bytes != size || f.SHA256 != origin.Sum(size, 7) {
			t.Errorf("%s: status %d, %d bytes, hash %s", url, f.Status, f.Bytes, f.SHA256)
		}
		if want := strings.HasPrefix(url, "https"); want != (f.Proto == "2") {
			t.Errorf("%s: HTTP/%s", url, f.Proto)
		}
	}
	up, err := l.Fetch(ctx, lab.Client, "https://example.test/sink", lab.FetchOptions{Body: origin.Bytes(size, 9)})
	if err != nil || !bytes.Contains(up.Head, []byte(origin.Sum(size, 9))) {
		t.Errorf("upload: %v: %+v", err, up)
	}
	for _, url := range []string{"ws://example.test/ws", "wss://example.test/ws"} {
		if err := l.WebSocketEcho(ctx, lab.Client, url, []byte("hi"), bytes.Repeat([]byte("x"), 100_000)); err != nil {
			t.Error(err)
		}
	}
	for _, to := range []string{"v4.test:7", "v6.test:7"} {
		if _, err := l.UDPEcho(ctx, lab.Client, to, []byte("ping")); err != nil {
			t.Errorf("udp echo %s: %v", to, err)
		}
	}
	if _, err := l.Resolve(ctx, lab.Client, "nx.test"); err == nil {
		t.Error("nx.test resolves")
	}
	m, err := l.Query(ctx, lab.Client, "udp", lab.DNS4().String()+":53", "big.test", dns.TypeTXT)
	if err != nil || !m.Truncated {
		t.Errorf("big.test over UDP is not truncated: %v", err)
	}
	m, err = l.Query(ctx, lab.Client, "tcp", "["+lab.DNS6().String()+"]:53", "big.test", dns.TypeTXT)
	if err != nil || m.Truncated || len(m.Answer) != 20 {
		t.Errorf("big.test over TCP: %v", err)
	}
}

// What commands do to /etc and /run stays in their node.
func TestCommandHasItsOwnFiles(t *testing.T) {
	before, _ := os.ReadFile("/etc/resolv.conf")
	l := lab.NewTest(t, lab.Options{})
	script := `echo "nameserver 192.0.2.77" >/etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf &&
		mkdir -p /run/atlantic && echo hi >/run/atlantic/file`
	if out, err := l.Command(lab.Client, "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, _ := l.ResolvConf(lab.Client); got != "nameserver 192.0.2.77\n" {
		t.Errorf("resolv.conf as the test sees it: %q", got)
	}
	out, err := l.Command(lab.Client, "cat", "/etc/resolv.conf", "/run/atlantic/file").Output()
	if err != nil || string(out) != "nameserver 192.0.2.77\nhi\n" {
		t.Errorf("the next command sees %q, %v", out, err)
	}
	if got, _ := l.ResolvConf(lab.Router); strings.Contains(got, "77") {
		t.Error("another node sees the change")
	}
	if after, _ := os.ReadFile("/etc/resolv.conf"); !bytes.Equal(before, after) {
		t.Error("the machine's own resolv.conf has changed")
	}
	out, err = l.Command(lab.Client, "ls", "/sys/class/net").Output()
	if err != nil || strings.Join(strings.Fields(string(out)), " ") != "eth0 lo" {
		t.Errorf("devices in /sys: %q, %v", out, err)
	}
}
