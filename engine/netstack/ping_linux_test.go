package netstack

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

func TestKernelPing(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	startKernel(t, &localHandler{})
	for _, host := range faraway {
		for _, size := range []int{56, 4000} {
			testPing(t, host, size)
		}
	}
}

func testPing(t *testing.T, host string, size int) {
	network, local, proto := "ip4:icmp", "0.0.0.0", protoICMP
	request, reply := icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply)
	if strings.Contains(host, ":") {
		network, local, proto = "ip6:ipv6-icmp", "::", protoICMP6
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(network, local)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	data := bytes.Repeat([]byte{7}, size)
	msg, _ := (&icmp.Message{Type: request, Body: &icmp.Echo{ID: 77, Seq: size, Data: data}}).Marshal(nil)
	c.WriteTo(msg, &net.IPAddr{IP: net.ParseIP(host)})
	b := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			t.Fatalf("ping %s with %d bytes: %v", host, size, err)
		}
		m, err := icmp.ParseMessage(proto, b[:n])
		if err != nil || m.Type != reply || from.String() != host {
			continue
		}
		if e := m.Body.(*icmp.Echo); e.ID != 77 || e.Seq != size || !bytes.Equal(e.Data, data) {
			t.Errorf("ping %s: the reply has other content", host)
		}
		return
	}
}
