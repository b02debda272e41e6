package netstack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab/nstest"
)

func TestKernelUDP(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	rig := startKernel(t, &localHandler{})
	for _, host := range faraway {
		l, err := net.ListenPacket("udp", net.JoinHostPort(loopback(netip.MustParseAddr(host)), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := l.ReadFrom(b)
				if err != nil {
					return
				}
				l.WriteTo(b[:n], from)
			}
		}()
		c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(l.LocalAddr().(*net.UDPAddr).Port)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		longest := maxTransport(netip.MustParseAddr(host).Is6()) - udpBytes
		sizes := []int{65487, 65488, 65497, 65498, longest - 1, longest}
		for n := 1; n <= 9000; n += 1 + n/50 {
			sizes = append(sizes, n)
		}
		out, in := make([]byte, longest), make([]byte, 65536)
		rand.NewChaCha8([32]byte{2}).Read(out)
		for _, n := range sizes {
			var got int
			var err error
			for range 10 { // a busy machine may lose a datagram, though not ten
				c.SetDeadline(time.Now().Add(time.Second))
				c.Write(out[:n])
				for got, err = c.Read(in); err == nil && got != n; { // an answer that came late
					got, err = c.Read(in)
				}
				if err == nil {
					break
				}
			}
			if err != nil || !bytes.Equal(in[:got], out[:n]) {
				t.Fatalf("%s: datagram of %d bytes: %d came back, %v; %+v", host, n, got, err, rig.counters.stats())
			}
		}
	}
}

func TestKernelUDPRefused(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	startKernel(t, &localHandler{noUDP: true})
	for _, host := range faraway {
		c, err := net.Dial("udp", net.JoinHostPort(host, "443"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want refused", host, err)
		}
	}
}
