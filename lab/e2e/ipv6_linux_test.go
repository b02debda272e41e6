package e2e

import (
	"strings"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
)

// watch captures at the router, once it has proven that it sees everything.
func watch(t *testing.T, l *lab.Lab) *capture.Capture {
	t.Helper()
	c, err := l.Capture("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if missing, err := l.PositiveControl(c); err != nil || len(missing) > 0 {
		t.Fatalf("the capture does not see %v (%v)", missing, err)
	}
	c.Reset()
	return c
}

// noLeaks wants nothing at the router but what is allowed.
func noLeaks(t *testing.T, c *capture.Capture, when string, allow ...capture.Tuple) {
	t.Helper()
	leaks, err := c.Leaks(allow...)
	if err != nil {
		t.Error(err)
	}
	for _, k := range leaks {
		t.Errorf("%s: leak: %v", when, k)
	}
}

// inClientDo runs lines of shell in the client.
func inClientDo(t *testing.T, l *lab.Lab, lines string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		if out, err := l.Command(lab.Client, "sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

// TestIPv6AtTheUplinkAlone: IPv6 is off by conf/all and on at the uplink, from
// the start or from a moment while on. Everything is carried all the same.
func TestIPv6AtTheUplinkAlone(t *testing.T) {
	const off = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1"
	const on = `
sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0
ip -6 addr add fd77::2/64 dev eth0 nodad
ip -6 route add default via fd77::1`
	for _, later := range []bool{false, true} {
		l := lab.NewTest(t, lab.Options{})
		router := watch(t, l)
		w := earlyProxy()
		upstream, allow := w.upstream(t, l)
		inClientDo(t, l, off)
		if !later {
			inClientDo(t, l, on)
		}
		s := start(t, l, labDNS+upstream, "--up")
		if st := s.await(api.On); st.TUN.IPv6 == later {
			t.Errorf("later %v: status says IPv6 %v", later, st.TUN.IPv6)
		}
		if later {
			inClientDo(t, l, on)
			if err := l.Probe(); err != nil { // at once
				t.Fatal(err)
			}
			await(t, "IPv6 of the TUN", func() bool { return s.status().TUN.IPv6 })
		}
		awaitCarrier(t, l, s, api.CarrierRedirect)
		if err := l.Probe(); err != nil {
			t.Fatal(err)
		}
		ipv6(t, l, w)
		udp(t, l, w)
		noLeaks(t, router, "IPv6 at the uplink alone", append(allow, lanTuple("224.0.0.251:5353"), lanTuple("239.255.255.250:1900"), lanTuple("10.77.0.255:137"))...)
		s.stop()
	}
}
