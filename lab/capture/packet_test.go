package capture

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

const (
	eth4 = "ffffffffffff 020000000001 0800 "
	eth6 = "333300000001 020000000001 86dd "
	a4   = "0a4d0002 c6336463"                                                 // 10.77.0.2 > 198.51.100.99
	a6   = "fd770000000000000000000000000002 20010db8000f0000000000000b000099" // fd77::2 > …
)

func frame(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		frame  string
		want   string
		upkeep bool
	}{
		"TCP":               {eth4 + "45000028 00004000 40060000" + a4 + "04d2 01bb 0000", "TCP 10.77.0.2:1234 > 198.51.100.99:443", false},
		"TCP, IP options":   {eth4 + "46000028 00004000 40060000" + a4 + "01010101 04d2 01bb", "TCP 10.77.0.2:1234 > 198.51.100.99:443", false},
		"VLAN":              {"ffffffffffff 020000000001 8100 0005 0800" + "45000028 00004000 40110000" + a4 + "0035 0035", "UDP 10.77.0.2:53 > 198.51.100.99:53", false},
		"second fragment":   {eth4 + "45000028 00000010 40110000" + a4 + "04d2 01bb", "UDP fragment 10.77.0.2:0 > 198.51.100.99:0", false},
		"first fragment":    {eth4 + "45000028 00002000 40110000" + a4 + "04d2 01bb", "UDP 10.77.0.2:1234 > 198.51.100.99:443", false},
		"GRE":               {eth4 + "45000028 00004000 402f0000" + a4, "IP protocol 47 10.77.0.2:0 > 198.51.100.99:0", false},
		"ping":              {eth4 + "45000028 00004000 40010000" + a4 + "0800", "ICMP(1) type 8 10.77.0.2:0 > 198.51.100.99:0", false},
		"ARP":               {"ffffffffffff 020000000001 0806 0001", "ARP", true},
		"LLDP":              {"0180c200000e 020000000001 88cc 0207", "ethertype 0x88cc", false},
		"UDP over IPv6":     {eth6 + "60000000 0008 11 40" + a6 + "04d2 01bb", "UDP [fd77::2]:1234 > [2001:db8:f::b00:99]:443", false},
		"hop-by-hop, MLD":   {eth6 + "60000000 0008 00 01" + a6 + "3a00 050200000100 8f00", "ICMP(58) type 143", true},
		"NS":                {eth6 + "60000000 0008 3a ff" + a6 + "8700", "ICMP(58) type 135", true},
		"echo over IPv6":    {eth6 + "60000000 0008 3a 40" + a6 + "8000", "ICMP(58) type 128", false},
		"router advert":     {eth6 + "60000000 0008 3a ff" + a6 + "8600", "ICMP(58) type 134", false},
		"IPv6 fragment":     {eth6 + "60000000 0008 2c 40" + a6 + "3a00 0008 00000001 8700", "ICMP(58) type 0 fragment", false},
		"atomic fragment":   {eth6 + "60000000 0008 2c 40" + a6 + "1100 0000 00000001 04d2 01bb", "UDP [fd77::2]:1234", false},
		"IPv4 cut off":      {eth4 + "4500", "ethertype 0x0800", false},
		"nothing":           {"", "ethertype 0x0000", false},
		"endless extension": {eth6 + "60000000 0008 00 40" + a6 + strings.Repeat("0000 000000000000", 20), "IP protocol 0", false},
	} {
		p := Packet{Key: Parse(frame(t, c.frame))}
		if !strings.HasPrefix(p.String(), c.want) || p.Upkeep() != c.upkeep {
			t.Errorf("%s: %s, upkeep %v", name, p, p.Upkeep())
		}
	}
}

func TestTuple(t *testing.T) {
	k := Parse(frame(t, eth4+"45000028 00004000 40060000"+a4+"04d2 01bb 0000"))
	to := netip.MustParseAddrPort("198.51.100.99:443")
	for _, c := range []struct {
		tuple Tuple
		want  bool
	}{
		{Tuple{Proto: "tcp", Dst: to}, true},
		{Tuple{Proto: "udp", Dst: to}, false},
		{Tuple{Proto: "tcp", Dst: netip.AddrPortFrom(to.Addr(), 80)}, false},
		{Tuple{Proto: "tcp", Dst: netip.AddrPortFrom(to.Addr(), 0)}, true},
		{Tuple{Proto: "tcp", Src: netip.MustParseAddrPort("10.77.0.2:0")}, true},
		{Tuple{Proto: "tcp", Src: netip.MustParseAddrPort("10.77.0.3:0")}, false},
		{Tuple{}, false},
	} {
		if got := c.tuple.match(k); got != c.want {
			t.Errorf("%+v matches: %v", c.tuple, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{eth4 + "45000028 00004000 40060000" + a4 + "04d2 01bb 0000", eth6 + "60000000 0008 00 01" + a6 + "3a00 050200000100 8f00", eth6 + "60000000 0008 2c 40" + a6 + "3a00 0008 00000001 8700", "ffffffffffff 020000000001 8100 0005 8100"} {
		f.Add(frame(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k := Parse(b)
		if k.Upkeep() && k.EtherType != EtherARP && k.Proto != ProtoICMPv6 {
			t.Errorf("%+v passes as upkeep", k)
		}
		frameBytes(b)
	})
}
