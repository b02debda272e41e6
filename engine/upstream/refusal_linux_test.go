package upstream

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// closedUDP is a UDP port that nobody listens on.
func closedUDP(t *testing.T, host string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skip("SKIPPED: no " + host + " on this machine")
	}
	defer c.Close()
	return flow.AddrPortOf(c.LocalAddr())
}

// TestDirectUDPRefused: who sends to a closed port is told, however he sends, and
// nothing is lost that goes elsewhere.
func TestDirectUDPRefused(t *testing.T) {
	server := udpEcho(t)
	for _, host := range []string{"127.0.0.1", "::1"} {
		closed := closedUDP(t, host)
		for _, each := range []bool{false, true} {
			conn, err := open(t, "direct://", nil, Options{}).Packets().DialPackets(t.Context(), flow.TargetOf(server))
			if err != nil {
				t.Fatal(err)
			}
			c := conn.(*directPackets)
			refused, got := make(chan netip.AddrPort, 100), make(chan string, 100)
			c.OnRefused(func(ap netip.AddrPort) { refused <- ap })
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = c.Receive(func(ms []flow.Datagram) {
					for _, m := range ms {
						got <- string(m.Data)
					}
				})
			}()
			for range 20 { // more than the errors that a receiver bears
				for _, to := range []netip.AddrPort{closed, server} {
					if each {
						if _, err := c.WriteTo([]byte("x"), flow.UDPAddrOf(to)); err != nil {
							t.Errorf("to %v: %v", to, err)
						}
					} else if done, lost, err := c.Send([]flow.Datagram{{Data: []byte("x"), Addr: to}}); done != 1 || lost != 0 {
						t.Errorf("to %v: %d done, %d lost, %v", to, done, lost, err)
					}
				}
				for range 2 {
					select {
					case ap := <-refused:
						if ap != closed {
							t.Errorf("%v refused, want %v", ap, closed)
						}
					case <-got:
					case <-time.After(5 * time.Second):
						t.Fatalf("to %v one by one %v: not told, or no answer", closed, each)
					}
				}
			}
			_ = c.Close()
			<-ended
		}
	}
}

// hostUnreachable has ICMP tell c that nobody is at to (type 3, code 1), and waits
// until c's socket knows.
func hostUnreachable(t *testing.T, c *directPackets, to netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Skip("SKIPPED: not root: ", err)
	}
	defer unix.Close(fd)
	p := []byte{3, 1, 0, 0, 0, 0, 0, 0, // RFC 792, and the head of what could not be delivered
		0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 127, 0, 0, 1}
	p = append(p, to.Addr().AsSlice()...)
	p = binary.BigEndian.AppendUint16(p, flow.AddrPortOf(c.LocalAddr()).Port())
	p = binary.BigEndian.AppendUint16(p, to.Port())
	p = append(p, 0, 8, 0, 0)
	sum := uint32(0)
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[2:], ^uint16(sum+sum>>16))
	if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	_ = c.raw.Control(func(fd uintptr) {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 5000); n != 1 {
			t.Errorf("the socket has not been told: %v", err)
		}
	})
}

// TestDirectUDPUnreachable: that a host cannot be reached costs no datagram to
// another, nor is it told to anybody as a closed port.
func TestDirectUDPUnreachable(t *testing.T) {
	server, silent := udpEcho(t), netip.MustParseAddrPort("127.0.0.9:9")
	conn, err := open(t, "direct://", nil, Options{}).Packets().DialPackets(t.Context(), flow.TargetOf(server))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := conn.(*directPackets)
	c.OnRefused(func(to netip.AddrPort) { t.Errorf("%v refused", to) })
	hostUnreachable(t, c, silent)
	if _, err := c.WriteTo([]byte("x"), flow.UDPAddrOf(server)); err != nil {
		t.Error(err)
	}
	hostUnreachable(t, c, silent)
	if done, lost, err := c.Send([]flow.Datagram{{Data: []byte("x"), Addr: server}}); done != 1 || lost != 0 {
		t.Errorf("%d done, %d lost, %v", done, lost, err)
	}
}
