package upstream

import (
	"net"
	"net/netip"
	"testing"
	"time"

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
