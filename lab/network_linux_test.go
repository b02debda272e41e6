package lab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
	"github.com/atlanticproxy/atlanticproxy/lab/netns"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
	"github.com/atlanticproxy/atlanticproxy/lab/snapshot"
	"github.com/atlanticproxy/atlanticproxy/lab/wanem"
)

// HTTP/2 CONNECT, with half-close, by our own proxy and by Apache.
func TestHTTP2Connect(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	own, err := l.StartProxy(lab.ProxyOptions{Scheme: proxy.HTTPS})
	if err != nil {
		t.Fatal(err)
	}
	proxies := map[string]string{"own": own.Addr().String()}
	if p, err := l.StartPeer(lab.Apache, 1, 443); err == nil {
		proxies["apache2"] = p.Addr.String()
	} else {
		t.Errorf("apache2: %v", err)
	}
	for name, addr := range proxies {
		t.Run(name, func(t *testing.T) {
			tr := l.Transport(lab.Client)
			defer tr.CloseIdleConnections()
			for i := range 3 {
				if err := connectHTTP2(tr, addr, "example.test:7001"); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
			}
		})
	}
	if n := own.Counters.Accepted.Load(); n != 1 {
		t.Errorf("3 streams took %d connections", n)
	}
}

// connectHTTP2 sends "hello" and END_STREAM to the half-closing origin, and
// wants its answer.
func connectHTTP2(tr *http.Transport, addr, target string) error {
	body, w := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req := (&http.Request{Method: "CONNECT", URL: &url.URL{Scheme: "https", Host: addr}, Host: target, Body: body, Header: http.Header{}}).WithContext(ctx)
	res, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 || res.StatusCode != 200 {
		return fmt.Errorf("%s %s", res.Proto, res.Status)
	}
	io.WriteString(w, "hello")
	w.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && !strings.HasPrefix(string(b), "5 2cf24dba5fb0a30e") {
		err = fmt.Errorf("answer %q", b)
	}
	return err
}

func TestImpairment(t *testing.T) {
	l := lab.NewTest(t, lab.Options{Impair: true, Seed: 1})
	median := func() time.Duration {
		l.Ping(lab.Client, lab.Origin4()) // ARP
		var all []time.Duration
		for range 41 {
			d, err := l.Ping(lab.Client, lab.Origin4())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, d)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	base := median()
	l.WAN.SetBoth(wanem.Link{Delay: 10 * time.Millisecond})
	delayed := median()
	// A busy machine can only add to it: nothing arrives early.
	if added := delayed - base; added < 20*time.Millisecond-base {
		t.Errorf("two delays of 10 ms add %v to %v", added, base)
	}
	t.Logf("bare %v, with two delays of 10 ms %v", base, delayed)

	l.WAN.SetBoth(wanem.Link{})
	l.WAN.Set(wanem.BtoA, wanem.Link{Rate: 40e6})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f, err := l.Fetch(ctx, lab.Client, "http://v4.test/bytes?n=5000000", lab.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A busy machine carries less; more would be a broken limit.
	mbit := 40 / f.Total.Seconds()
	t.Logf("40 Mbit/s carry %.1f", mbit)
	if mbit > 40.5 {
		t.Errorf("40 Mbit/s carry %.1f", mbit)
	}
	l.WAN.Set(wanem.BtoA, wanem.Link{Loss: 0.5})
	lost := 0
	for range 60 {
		if _, err := l.UDPEcho(ctx, lab.Internet, "v4.test:7", nil); err != nil {
			t.Fatal("the internet itself is not impaired:", err)
		}
	}
	before := l.WAN.Stats(wanem.BtoA)
	c, err := l.NS(lab.Client).DialContext(ctx, "udp", netip.AddrPortFrom(lab.Origin4(), 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 400 {
		c.Write([]byte("x"))
		time.Sleep(200 * time.Microsecond)
	}
	time.Sleep(20 * time.Millisecond)
	after := l.WAN.Stats(wanem.BtoA)
	lost = int(after.Lost - before.Lost)
	if lost < 140 || lost > 260 {
		t.Errorf("of 400 frames at 50 %% loss, %d were lost", lost)
	}
}

func TestCaptureSeesLeaks(t *testing.T) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	file := l.Dir() + "/client.pcap"
	c, err := l.Capture(file)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	upstream := netip.AddrPortFrom(lab.Upstream4(0), 1080)
	allowed := capture.Tuple{Proto: "tcp", Dst: upstream}
	dial := func(network, to string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if conn, err := l.NS(lab.Client).DialContext(ctx, network, to); err == nil {
			conn.Write([]byte("probe"))
			conn.Close()
		}
	}
	dial("tcp", upstream.String()) // refused, but sent
	dial("tcp", net.JoinHostPort(lab.Origin6().String(), "80"))
	l.Origin.Close()
	leaks, err := c.Leaks(allowed, capture.Tuple{Proto: "tcp", Dst: netip.AddrPortFrom(lab.Origin6(), 80)})
	if err != nil || len(leaks) != 0 {
		t.Fatalf("only what is allowed was sent, but: %v %v", leaks, err)
	}
	missing, err := l.PositiveControl(c)
	if err != nil || len(missing) != 0 {
		t.Errorf("the capture does not see %v, %v", missing, err)
	}
	leaks, err = c.Leaks(allowed)
	if err != nil || len(leaks) < 6 {
		t.Errorf("too few leaks: %v %v", leaks, err)
	}
	c.Close()
	if out, err := exec.Command("tcpdump", "-nr", file, "udp port 3478").CombinedOutput(); err != nil || !strings.Contains(string(out), ".3478: UDP") {
		t.Errorf("tcpdump reads the pcap file as %s, %v", out, err)
	}
}

func TestSnapshotSeesEveryChange(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	take := func() snapshot.Snapshot {
		t.Helper()
		s, err := l.Snapshot(lab.Client)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := take()
	time.Sleep(1100 * time.Millisecond) // lifetimes would count down
	if d := snapshot.Diff(before, take()); d != "" {
		t.Fatalf("nothing has changed, but:\n%s", d)
	}
	for _, change := range [][2]string{
		{"ip addr add 10.9.9.9/32 dev lo", "ip addr del 10.9.9.9/32 dev lo"},
		{"ip route add 192.0.2.128/25 dev eth0 table 77", "ip route flush table 77"},
		{"ip -6 rule add fwmark 7 table 77", "ip -6 rule del fwmark 7"},
		{"nft add table inet leak", "nft delete table inet leak"},
		{"sysctl -qw net.ipv4.conf.eth0.rp_filter=2", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0"},
		{"ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"},
		{"chmod 600 /etc/resolv.conf", "chmod 644 /etc/resolv.conf"},
	} {
		for i, script := range change {
			if out, err := l.Command(lab.Client, "sh", "-c", script).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", script, err, out)
			}
			if d := snapshot.Diff(before, take()); (d == "") != (i == 1) {
				t.Errorf("after %q the difference is %q", script, d)
			}
		}
	}
}

// A killed process leaves namespaces, a program and files; the next New removes
// them.
func TestSweepsDeadLabs(t *testing.T) {
	if os.Getenv("LAB_TEST_DIE") != "" {
		l, err := lab.New(lab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		cmd := l.Command(lab.Client, "sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("ready %d %s\n", cmd.Process.Pid, l.Dir())
		os.Stdout.Sync()
		time.Sleep(time.Minute)
	}
	alive := lab.NewTest(t, lab.Options{})
	cmd := exec.Command(os.Args[0], "-test.run=^TestSweepsDeadLabs$")
	cmd.Env = append(os.Environ(), "LAB_TEST_DIE=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var sleeper int
	var dir string
	if _, err := fmt.Fscanf(out, "ready %d %s", &sleeper, &dir); err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("atl-%d-", cmd.Process.Pid)
	if len(netns.Names(prefix)) != 3 {
		t.Fatalf("the other lab's namespaces: %v", netns.Names(prefix))
	}
	cmd.Process.Kill()
	cmd.Wait()
	lab.Sweep()
	if left := netns.Names(prefix); len(left) != 0 {
		t.Errorf("namespaces left: %v", left)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", sleeper)); err == nil && strings.HasPrefix(string(b), "sleep") {
		t.Errorf("program %d is left", sleeper)
	}
	if _, err := alive.Ping(lab.Client, lab.Origin4()); err != nil {
		t.Errorf("sweeping broke a living lab: %v", err)
	}
}

func TestMisbehaviour(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	for _, scheme := range []proxy.Scheme{proxy.HTTP, proxy.HTTPS, proxy.SOCKS5} {
		p, err := l.StartProxy(lab.ProxyOptions{Scheme: scheme})
		if err != nil {
			t.Fatal(err)
		}
		for fault, want := range map[proxy.Fault]string{
			proxy.Auth: "407|authentication|rejected", proxy.HTML: "wrong version number|SOCKS", proxy.Refuse: "502|Can't complete SOCKS5",
			proxy.Silent: "timed out", proxy.Hangup: "curl", proxy.Reset: "reset|curl", proxy.None: "",
		} {
			p.SetFault(fault)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err := l.Fetch(ctx, lab.Client, "https://example.test/", lab.FetchOptions{Args: []string{"-m", "1",
				"--proxy", strings.Replace(p.URL(), "socks5:", "socks5h:", 1), "--proxy-cacert", l.CAFile()}})
			cancel()
			switch {
			case want == "" && err != nil:
				t.Errorf("%s without a fault: %v", scheme, err)
			case want != "" && err == nil:
				t.Errorf("%s with fault %d works", scheme, fault)
			case err != nil && !slices.ContainsFunc(strings.Split(want, "|"), func(w string) bool { return strings.Contains(err.Error(), w) }):
				t.Errorf("%s with fault %d: %v", scheme, fault, err)
			}
		}
	}
}
