package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/lab/capture"
)

// probe is one kind of packet that an unprotected client lets out.
type probe struct {
	proto string // tcp, udp, icmp
	to    netip.AddrPort
}

func probes() []probe {
	port := func(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }
	var all []probe
	for _, a := range []netip.Addr{Closed4(), Closed6()} {
		all = append(all, probe{"tcp", port(a, 443)}, probe{"tcp", port(a, 49152)}, probe{"icmp", port(a, 0)})
		for _, p := range []uint16{53, 443, 3478, 49152} {
			all = append(all, probe{"udp", port(a, p)})
		}
	}
	return append(all,
		probe{"udp", netip.MustParseAddrPort("224.0.0.251:5353")},     // mDNS
		probe{"udp", netip.MustParseAddrPort("239.255.255.250:1900")}, // SSDP
		probe{"udp", netip.MustParseAddrPort("10.77.0.255:137")})      // NetBIOS, broadcast
}

// Probe sends one packet of each kind that must not leave a protected client,
// from the client: TCP, UDP and ICMP over IPv4 and IPv6, DNS, STUN, multicast
// and broadcast. What becomes of them does not matter.
func (l *Lab) Probe() error {
	for _, p := range probes() {
		if err := l.send(p); err != nil {
			return fmt.Errorf("probe %s to %s: %w", p.proto, p.to, err)
		}
	}
	return nil
}

// PositiveControl proves that a capture would see leaks: with no engine
// running, it sends all probes and returns those that were not seen.
func (l *Lab) PositiveControl(c *capture.Capture) ([]string, error) {
	if err := l.Probe(); err != nil {
		return nil, err
	}
	// What waits for its neighbour's address to be found may come late.
	missing := unseen(c.Packets())
	for late := time.Now().Add(5 * time.Second); len(missing) > 0 && time.Now().Before(late); missing = unseen(c.Packets()) {
		time.Sleep(20 * time.Millisecond)
	}
	return missing, c.Err()
}

// unseen lists the probes that are not among packets.
func unseen(packets []capture.Packet) (missing []string) {
	for _, p := range probes() {
		found := false
		for _, s := range packets {
			proto := map[uint8]string{capture.ProtoTCP: "tcp", capture.ProtoUDP: "udp", capture.ProtoICMP: "icmp", capture.ProtoICMPv6: "icmp"}[s.Proto]
			found = found || proto == p.proto && s.Dst == p.to
		}
		if !found {
			missing = append(missing, p.proto+" to "+p.to.String())
		}
	}
	return missing
}

// send lets one probe out. A refusal or an unreachable network is no error: it
// is what protection looks like.
func (l *Lab) send(p probe) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	ns := l.nodes[Client].ns
	if p.proto == "tcp" {
		if c, err := ns.DialContext(ctx, "tcp", p.to.String()); err == nil {
			c.Close()
		}
		return nil
	}
	return ns.Do(func() error {
		if p.proto == "icmp" {
			return sendICMP(p.to.Addr())
		}
		network := "udp6"
		if p.to.Addr().Is4() {
			network = "udp4"
		}
		// Broadcast needs a permission that net gives every UDP socket.
		c, err := net.ListenPacket(network, ":0")
		if err != nil {
			return err
		}
		defer c.Close()
		c.WriteTo([]byte("atlantic-lab-probe"), net.UDPAddrFromAddrPort(p.to))
		return nil
	})
}

func sendICMP(to netip.Addr) error {
	family, proto, kind := unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(128)
	if to.Is4() {
		family, proto, kind = unix.AF_INET, unix.IPPROTO_ICMP, 8
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := []byte{kind, 0, ^kind, 255, 0, 0, 0, 0} // its checksum, as all other words are zero
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	}
	unix.Sendto(fd, b, 0, sa)
	return nil
}
