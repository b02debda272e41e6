package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// earlyProxy is an upstream that carries early data.
func earlyProxy() way {
	return way{name: "early", own: &lab.ProxyOptions{Scheme: proxy.SOCKS5, User: "user", Password: "secret"}, udp: true}
}

// awaitCarrier fetches until TCP comes by the carrier wanted.
func awaitCarrier(t *testing.T, l *lab.Lab, s *service, want string) {
	t.Helper()
	var st api.Status
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if st = s.status(); st.TUN.Carrier == want {
			return
		}
		_, _ = l.Fetch(t.Context(), lab.Client, "http://example.test/proto", lab.FetchOptions{}) // proves early data
	}
	t.Fatalf("carrier is %q, want %q; early data: %s\n%s", st.TUN.Carrier, want, st.Upstream.Early, s.out)
}

// redirectRule is in the ruleset while connections are redirected.
const redirectRule = "dnat ip to 127.0.0.1-127.255.255.254"

func ruleset(t *testing.T, l *lab.Lab) string {
	t.Helper()
	out, err := l.Command(lab.Client, "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
	return string(out)
}

// Everything that an app may do, with TCP by the redirect; connections outlive
// that it goes and comes.
func TestRedirect(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	w := earlyProxy()
	upstream, allow := w.upstream(t, l)
	cap, err := l.Capture("")
	if err != nil {
		t.Fatal(err)
	}
	defer cap.Close()
	if _, err := l.PositiveControl(cap); err != nil {
		t.Fatalf("the capture sees nothing, so it would prove nothing: %v", err)
	}
	cap.Reset()
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	awaitCarrier(t, l, s, api.CarrierRedirect)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *lab.Lab, way)
	}{
		{"http", fetches}, {"parallel", parallel}, {"websocket", websockets},
		{"half-close", halfClose}, {"reset", reset}, {"refused", refused}, {"ipv6", ipv6},
		{"dns", names}, {"udp", udp}, {"ping", ping},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, l, w) })
	}
	leaks, err := cap.Leaks(allow...)
	if err != nil {
		t.Error(err)
	}
	for _, p := range leaks {
		t.Errorf("leak: %v", p)
	}

	c := dial(t, l, "tcp", fmt.Sprintf("example.test:%d", origin.PortEcho))
	speak := func(when string) {
		t.Helper()
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	speak("by the redirect")
	s.must("use", "direct")
	awaitCarrier(t, l, s, api.CarrierNAT)
	if r := ruleset(t, l); strings.Contains(r, redirectRule) {
		t.Errorf("the rule is still there:\n%s", r)
	}
	s.must("use", w.name)
	awaitCarrier(t, l, s, api.CarrierRedirect)
	fetches(t, l, w)
	s.must("down")
	if r := ruleset(t, l); strings.Contains(r, "atlantic") {
		t.Errorf("after down:\n%s", r)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
		t.Error("the connection lives although there is nobody to carry it")
	}
}

// Killed while the rule is in force: the next start, or rescue, leaves nothing.
func TestRedirectKilled(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	upstream, _ := earlyProxy().upstream(t, l)
	before := ruleset(t, l)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	awaitCarrier(t, l, s, api.CarrierRedirect)
	s.kill()
	if r := ruleset(t, l); !strings.Contains(r, redirectRule) {
		t.Fatalf("the kill left nothing to clean up:\n%s", r)
	}
	s.launch()
	s.await(api.On)
	fetches(t, l, earlyProxy())
	s.must("down")
	if after := ruleset(t, l); after != before {
		t.Errorf("after the next run:\n%s\nbefore:\n%s", after, before)
	}

	s.must("up", "--wait")
	awaitCarrier(t, l, s, api.CarrierRedirect)
	s.kill()
	s.rescue()
	if after := ruleset(t, l); after != before {
		t.Errorf("after rescue:\n%s\nbefore:\n%s", after, before)
	}
}

// The device is taken away while the redirect is in force: what comes next is
// the kernel path again, and nobody's firewall is blamed.
func TestRedirectWithoutDevice(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	upstream, _ := earlyProxy().upstream(t, l)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	for range 3 {
		awaitCarrier(t, l, s, api.CarrierRedirect)
		if out, err := l.Command(lab.Client, "ip", "link", "del", "atlantic0").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		await(t, "the device to come back", func() bool {
			return l.Command(lab.Client, "ip", "link", "show", "atlantic0").Run() == nil && s.status().State == api.On
		})
		if st := s.status(); st.TUN.Path != "kernel" || len(st.Warnings) > 0 {
			t.Fatalf("path %q, warnings %q\n%s", st.TUN.Path, st.Warnings, s.out)
		}
		fetches(t, l, earlyProxy())
	}
}

// await waits until cond holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
