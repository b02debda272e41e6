package linux

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProcessFindsThisTest(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	any4, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer any4.Close()
	any6, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer any6.Close()
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	loopback := netip.MustParseAddr("127.0.0.1")
	for name, q := range map[string]struct {
		network string
		src     netip.AddrPort
		want    string
	}{
		"tcp":                {"tcp", netip.MustParseAddrPort(c.LocalAddr().String()), exe},
		"udp on any address": {"udp", netip.AddrPortFrom(loopback, port(any4.LocalAddr())), exe},
		"v4 of a v6 socket":  {"udp", netip.AddrPortFrom(loopback, port(any6.LocalAddr())), exe},
		"nobody":             {"tcp", netip.AddrPortFrom(loopback, 1), ""},
		"unknown network":    {"sctp", netip.AddrPortFrom(loopback, 1), ""},
	} {
		if got := h.Process(q.network, q.src, netip.AddrPort{}); got != q.want {
			t.Errorf("%s: %q, want %q", name, got, q.want)
		}
	}
	if n := len(h.processes.known); n == 0 || n > maxProcesses {
		t.Errorf("%d answers are remembered", n)
	}
	for i := range 2 * maxProcesses {
		h.processes.find("none", netip.AddrPortFrom(loopback, uint16(i)), time.Now())
	}
	if n := len(h.processes.known); n > maxProcesses {
		t.Errorf("%d answers are remembered, want at most %d", n, maxProcesses)
	}
}

const procTCP = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000 100 0 0 10 0
   1: 0100007F:1F91 0100007F:1F90 06 00000000:00000000 03:00001234 00000000     0        0 0 3 0000
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 77 1
`

func TestFindInode(t *testing.T) {
	for src, want := range map[string]string{
		"127.0.0.1:8080": "4242", "127.0.0.1:8081": "", "[::1]:80": "77", "10.0.0.1:8080": "",
	} {
		if got := findInode(strings.NewReader(procTCP), netip.MustParseAddrPort(src), false); got != want {
			t.Errorf("%s: inode %q, want %q", src, got, want)
		}
	}
}

func FuzzFindInode(f *testing.F) {
	f.Add(procTCP)
	f.Add("a b:c d e f g h i j k\n1 0100007F: 2 3 4 5 6 7 8 9\n")
	f.Fuzz(func(t *testing.T, text string) {
		findInode(strings.NewReader(text), netip.MustParseAddrPort("127.0.0.1:80"), true)
	})
}
