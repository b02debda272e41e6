package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
)

// tunnel makes wg0 in the client: another program's tunnel to 10.9.0.0/24,
// 100.99.0.0/16 and fd09::/64 with its routes in the main table. Its far end, in
// a namespace of its own, answers TCP on port 80.
func tunnel(t *testing.T, l *lab.Lab) {
	t.Helper()
	far := behind(t, l, "wg0", `
ip addr add 10.9.0.2/32 dev wg0
ip -6 addr add fd09::2/128 dev wg0 nodad
ip link set wg0 up
ip route add 10.9.0.0/24 dev wg0
ip route add 100.99.0.0/16 dev wg0
ip -6 route add fd09::/64 dev wg0`, `
ip addr add 10.9.0.1/24 dev eth0
ip addr add 100.99.0.1/16 dev eth0
ip -6 addr add fd09::1/64 dev eth0 nodad
ip route add default dev eth0`)
	far.serve(t, ":80", "beside")
}

// reaches tells who answers at an address on TCP: "beside" is the other
// network's own server.
func reaches(t *testing.T, l *lab.Lab, address string) string {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := l.NS(lab.Client).DialContext(ctx, "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	b, err := io.ReadAll(io.LimitReader(c, 64))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

// marked sends a datagram as another program's outer packets are sent: from a
// socket with a mark of its own.
func marked(t *testing.T, l *lab.Lab, mark int, to string) {
	t.Helper()
	err := l.In(lab.Client, func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			ctlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
			if ctlErr != nil {
				return ctlErr
			}
			return err
		}}
		pc, err := lc.ListenPacket(t.Context(), "udp", ":0")
		if err != nil {
			return err
		}
		defer pc.Close()
		_, err = pc.WriteTo([]byte("outer"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		return err
	})
	if err != nil {
		t.Errorf("a packet with mark %d to %s: %v", mark, to, err)
	}
}

// TestOtherTunnel: a tunnel of another program keeps its networks and its own
// packets, whether it came before us or after, by either carrier.
func TestOtherTunnel(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprint("after up ", after), func(t *testing.T) {
			l := lab.NewTest(t, lab.Options{})
			router := watch(t, l)
			upstream, allow := earlyProxy().upstream(t, l)
			if !after {
				tunnel(t, l)
			}
			s := start(t, l, labDNS+upstream, "--up")
			s.await(api.On)
			if after {
				tunnel(t, l)
			}
			await(t, "status to tell of wg0", func() bool {
				return slices.ContainsFunc(s.status().Networks, func(n api.Network) bool { return n.Interface == "wg0" && len(n.Prefixes) >= 3 })
			})
			contains(t, s.must("status"), "beside", "wg0", "10.9.0.0/24")
			contains(t, s.must("why", "10.9.0.1"), "directly")
			for _, carrier := range []string{api.CarrierRedirect, api.CarrierNAT} {
				if carrier == api.CarrierNAT {
					s.must("use", "direct")
				}
				awaitCarrier(t, l, s, carrier)
				flows := s.status().Flows.Total
				for _, address := range []string{"10.9.0.1:80", "100.99.0.1:80", "[fd09::1]:80"} {
					if got := reaches(t, l, address); got != "beside" {
						t.Errorf("%s: at %s: %s", carrier, address, got)
					}
				}
				if n := s.status().Flows.Total - flows; n != 0 {
					t.Errorf("%s: %d flows were ours", carrier, n)
				}
				if out, code := inClient(t, l, "curl", "-sS", "--max-time", "5", "--http0.9", "-x", "socks5h://127.0.0.1:7890", "http://10.9.0.1/"); code != 0 || !strings.Contains(out, "beside") {
					t.Errorf("%s: by the local proxy: %s", carrier, out)
				}
				if carrier == api.CarrierRedirect {
					noLeaks(t, router, "with another tunnel", allow...)
				}
			}
			outer := []string{"203.0.113.15:51820", "[2001:db8:f::a:15]:51820"}
			for _, to := range outer {
				marked(t, l, 51820, to)
				await(t, "the outer packet to "+to, func() bool {
					return slices.ContainsFunc(router.Packets(), func(p capture.Packet) bool {
						return p.Dst == netip.MustParseAddrPort(to) && (p.Src.Addr() == lab.Client4() || p.Src.Addr() == lab.Client6())
					})
				})
			}
			s.stop()
		})
	}
}

// TestMarksOfAFirewall: a mark that somebody's firewall gives to packets of
// ordinary sockets is no way past us.
func TestMarksOfAFirewall(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	router := watch(t, l)
	upstream, allow := earlyProxy().upstream(t, l)
	mustAt(t, l, lab.Client, `
nft add table inet qos
nft 'add chain inet qos out { type route hook output priority mangle; }'
nft 'add rule inet qos out meta mark == 0 meta mark set 7'`)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	if err := l.Probe(); err != nil {
		t.Fatal(err)
	}
	for _, carrier := range []string{api.CarrierNAT, api.CarrierRedirect} {
		if carrier == api.CarrierRedirect {
			awaitCarrier(t, l, s, carrier)
		}
		works(t, l)
		ipv6(t, l, earlyProxy())
		udp(t, l, earlyProxy())
	}
	noLeaks(t, router, "with marks of a firewall", append(allow, lanTuple("224.0.0.251:5353"), lanTuple("239.255.255.250:1900"), lanTuple("10.77.0.255:137"))...)
	s.stop()
}

// TestInjectedRoutes: LK-08. Routes that a DHCP server on the LAN can inject
// (option 121) lead nothing past us.
func TestInjectedRoutes(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	router := watch(t, l)
	upstream, allow := earlyProxy().upstream(t, l)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	mustAt(t, l, lab.Client, `
ip route add 0.0.0.0/1 via 10.77.0.1
ip route add 128.0.0.0/1 via 10.77.0.1
ip route add 198.51.100.99/32 via 10.77.0.1
ip -6 route add 2000::/3 via fd77::1
ip -6 route add 2001:db8:f::b:99/128 via fd77::1`)
	for range 3 { // before and after we have looked at them
		if err := l.Probe(); err != nil {
			t.Fatal(err)
		}
		works(t, l)
		time.Sleep(200 * time.Millisecond)
	}
	noLeaks(t, router, "with injected routes", append(allow, lanTuple("224.0.0.251:5353"), lanTuple("239.255.255.250:1900"), lanTuple("10.77.0.255:137"))...)
	s.stop()
}
