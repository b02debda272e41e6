package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/netns"
)

// at runs one line of shell on a machine of the lab and returns what it says.
func at(t *testing.T, l *lab.Lab, n lab.Node, line string) (string, error) {
	t.Helper()
	out, err := l.Command(n, "sh", "-c", line).CombinedOutput()
	return string(out), err
}

func mustAt(t *testing.T, l *lab.Lab, n lab.Node, lines string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		if out, err := at(t, l, n, line); err != nil {
			t.Fatalf("%s: %s: %v\n%s", n, line, err, out)
		}
	}
}

// TestNeighbourIsNotServed: the client forwards packets and routes loopback
// addresses, and its neighbour on the LAN makes the most of it. What does not
// start on the client is not carried, by either carrier; TR-02, LP-06.
func TestNeighbourIsNotServed(t *testing.T) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	upstream, _ := earlyProxy().upstream(t, l)
	mustAt(t, l, lab.Client, `
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
sysctl -qw net.ipv4.conf.eth0.route_localnet=1`)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	// The neighbour's way to everything is the client, its own loopback included.
	mustAt(t, l, lab.LAN, `
ip route replace default via 10.77.0.2
ip -6 route replace default via fd77::2
ip addr del 127.0.0.1/8 dev lo
sysctl -qw net.ipv4.conf.all.route_localnet=1
ip route add 127.0.0.0/8 via 10.77.0.2 dev eth0`)
	for _, carrier := range []string{api.CarrierRedirect, api.CarrierNAT} {
		if carrier == api.CarrierNAT {
			s.must("use", "direct")
		}
		awaitCarrier(t, l, s, carrier)
		before := s.status().Flows.Total
		var all sync.WaitGroup
		curl := func(what, args string) {
			all.Go(func() {
				out, err := at(t, l, lab.LAN, "curl -gsS --max-time 2 "+args)
				if err == nil || strings.Contains(out, "reply") || strings.Contains(out, "reset") { // somebody was there
					t.Errorf("%s: the neighbour reaches %s: %s", carrier, what, out)
				}
			})
		}
		curl("an IPv4 target", "http://198.51.100.10/proto")
		curl("an IPv6 target", "http://[2001:db8:f::b:10]/proto")
		curl("the local proxy", "-x http://127.0.0.1:7890 http://198.51.100.10/proto")
		curl("the local proxy", "--socks5-hostname 127.0.0.1:7890 http://198.51.100.10/proto")
		for _, port := range redirectPorts(t, l) {
			curl("our listener on port "+port, "http://127.0.0.1:"+port+"/")
		}
		for _, server := range []string{"198.18.0.2:53", "198.51.100.53:53", "[2001:db8:f::b:53]:53"} {
			for _, network := range []string{"udp", "tcp"} {
				all.Go(func() {
					if m, err := ask(t, l, network, server); err == nil {
						t.Errorf("%s: the neighbour's question to %s over %s is answered: %v", carrier, server, network, m.Answer)
					}
				})
			}
		}
		all.Go(func() {
			if _, err := l.UDPEcho(t.Context(), lab.LAN, "198.51.100.10:7", []byte("x")); err == nil {
				t.Errorf("%s: the neighbour's datagram is carried", carrier)
			}
		})
		all.Wait()
		if n := s.status().Flows.Total - before; n != 0 {
			t.Errorf("%s: %d flows are the neighbour's", carrier, n)
		}
		works(t, l)
	}
	s.stop()
}

func ask(t *testing.T, l *lab.Lab, network, server string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return l.Query(ctx, lab.LAN, network, server, "example.test", dns.TypeA)
}

// redirectPorts are those on which the service listens for everybody.
func redirectPorts(t *testing.T, l *lab.Lab) (ports []string) {
	t.Helper()
	out, err := at(t, l, lab.Client, "ss -Hltn '! src 127.0.0.1'")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) > 3 && strings.HasPrefix(f[3], "0.0.0.0") {
			ports = append(ports, f[3][strings.LastIndex(f[3], ":")+1:])
		}
	}
	if len(ports) == 0 {
		t.Fatalf("no listener of the redirect:\n%s", out)
	}
	return ports
}

// TestTUNAddressAnswersNobody: LK-25. The neighbour sends what it can to the
// TUN's own addresses; not one packet comes back, with forwarding on or off.
func TestTUNAddressAnswersNobody(t *testing.T) {
	l := lab.NewTest(t, lab.Options{LAN: true})
	upstream, _ := earlyProxy().upstream(t, l)
	before := record(t, l)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	mac := strings.TrimSpace(mustOut(t, l, lab.Client, "cat /sys/class/net/eth0/address"))
	mustAt(t, l, lab.LAN, `
ip route add 198.18.0.0/15 dev eth0
ip -6 route add fd61:746c:616e:7469::/64 dev eth0`)
	c, err := l.Capture("") // what the client sends
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	listen(t, l, "[::]:2222") // an app's server on all addresses
	for _, forward := range []string{"0", "1"} {
		mustAt(t, l, lab.Client, "sysctl -qw net.ipv4.ip_forward="+forward+" net.ipv6.conf.all.forwarding="+forward)
		for _, to := range []string{"198.18.0.1", "fd61:746c:616e:7469::1"} {
			at(t, l, lab.LAN, "ip neigh del "+to+" dev eth0")
			at(t, l, lab.LAN, "ping -c 1 -W 1 "+to) // asks for its hardware address first
			if out := mustOut(t, l, lab.LAN, "ip neigh show "+to+" dev eth0"); strings.Contains(out, mac) {
				t.Errorf("forwarding %s: the client says where %s is: %s", forward, to, out)
			}
			mustAt(t, l, lab.LAN, "ip neigh replace "+to+" lladdr "+mac+" dev eth0")
			c.Reset()
			var all sync.WaitGroup
			all.Go(func() { at(t, l, lab.LAN, "ping -c 2 -i 0.2 -W 1 "+to) })
			for _, port := range []int{2222, 1, 53} {
				all.Go(func() { lanDial(t, l, "tcp", to, port) })
				all.Go(func() { lanDial(t, l, "udp", to, port) })
			}
			all.Wait()
			for _, p := range c.Packets() {
				if p.Src.Addr() == netip.MustParseAddr(to) || p.Dst.Addr() == lab.LAN4() || p.Dst.Addr() == lab.LAN6() {
					if !p.Upkeep() {
						t.Errorf("forwarding %s: an answer from %s: %v", forward, to, p)
					}
				}
			}
		}
	}
	mustAt(t, l, lab.Client, "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	works(t, l)
	s.stop()
	same(t, l, before, "after a curious neighbour")
}

func mustOut(t *testing.T, l *lab.Lab, n lab.Node, line string) string {
	t.Helper()
	out, err := at(t, l, n, line)
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", n, line, err, out)
	}
	return out
}

// lanDial sends something to an address from the LAN machine.
func lanDial(t *testing.T, l *lab.Lab, network, to string, port int) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	address := netip.AddrPortFrom(netip.MustParseAddr(to), uint16(port)).String()
	c, err := l.NS(lab.LAN).DialContext(ctx, network, address)
	if err != nil {
		return
	}
	fmt.Fprint(c, "hello")
	c.Close()
}

// listen opens a server in the client that takes connections and says nothing.
func listen(t *testing.T, l *lab.Lab, address string) {
	t.Helper()
	ln, err := l.NS(lab.Client).Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
}

// TestContainers: what a container behind a bridge of the client sends is
// carried, although the client's neighbours are refused; LK-15.
func TestContainers(t *testing.T) {
	l := lab.NewTest(t, lab.Options{})
	router := watch(t, l)
	w := earlyProxy()
	upstream, allow := w.upstream(t, l)
	inside := container(t, l)
	s := start(t, l, labDNS+upstream, "--up")
	s.await(api.On)
	awaitCarrier(t, l, s, api.CarrierRedirect)
	for _, url := range []string{"http://198.51.100.10/proto", "http://[2001:db8:f::b:10]/proto"} {
		var stderr bytes.Buffer
		cmd := inside.command("curl", "-sS", "-g", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", url)
		cmd.Stderr = &stderr
		if out, err := cmd.Output(); err != nil || string(out) != "200" {
			t.Errorf("a container's request for %s: %q, %v\n%s", url, out, err, &stderr)
		}
	}
	for _, server := range []string{"198.18.0.2", "198.51.100.53"} { // as its resolv.conf has it
		if out, err := inside.command("dig", "+short", "+time=3", "+tries=1", "@"+server, "example.test").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "198.18.") {
			t.Errorf("a container asks %s: %s", server, out)
		}
	}
	noLeaks(t, router, "of a container", append(allow, lanTuple("224.0.0.251:5353"), lanTuple("239.255.255.250:1900"), lanTuple("10.77.0.255:137"))...)
	s.stop()
}

// container starts a machine behind a bridge of the client, which forwards for
// it.
func container(t *testing.T, l *lab.Lab) machine {
	t.Helper()
	return behind(t, l, "veth0", `
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip -6 addr add fd17::1/64 dev docker0 nodad
ip link set docker0 up
ip link set veth0 master docker0 up`, `
ip addr add 172.17.0.2/16 dev eth0
ip -6 addr add fd17::2/64 dev eth0 nodad
ip route add default via 172.17.0.1
ip -6 route add default via fd17::1`)
}

// machine is one more beside the lab's, at the other end of a device of the
// client.
type machine struct {
	l   *lab.Lab
	pid string // of a process in its network
}

// behind makes a device of the client, and a machine at its other end, whose
// device is eth0.
func behind(t *testing.T, l *lab.Lab, device, here, there string) machine {
	t.Helper()
	sleep := l.Command(lab.Client, "unshare", "-n", "sleep", "300")
	sleep.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sleep.Process.Kill(); sleep.Wait() })
	m := machine{l, strconv.Itoa(sleep.Process.Pid)}
	client := strings.TrimSpace(mustOut(t, l, lab.Client, "readlink /proc/self/ns/net"))
	await(t, "the machine behind "+device, func() bool { // first it is in ours, then in the client's network
		ours, errOurs := os.Readlink("/proc/self/ns/net")
		its, err := os.Readlink("/proc/" + m.pid + "/ns/net")
		return errOurs == nil && err == nil && its != ours && its != client
	})
	mustAt(t, l, lab.Client, "ip link add "+device+" type veth peer name eth0 netns "+m.pid)
	mustAt(t, l, lab.Client, here)
	for _, line := range strings.Split("ip link set lo up\nip link set eth0 up\n"+strings.TrimSpace(there), "\n") {
		if out, err := m.command(strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("behind %s: %s: %v\n%s", device, line, err, out)
		}
	}
	return m
}

// command runs a program there.
func (m machine) command(args ...string) *exec.Cmd {
	return m.l.Command(lab.Client, "nsenter", append([]string{"-t", m.pid, "-n"}, args...)...)
}

// serve answers TCP connections there with a text, until the test ends.
func (m machine) serve(t *testing.T, address, text string) {
	t.Helper()
	var ln net.Listener
	err := netns.OnThread(func() error {
		f, err := os.Open("/proc/" + m.pid + "/ns/net")
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		ln, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, text)
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c) // what is unread at the end would reset it
			}()
		}
	}()
}
