package origin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/miekg/dns"
)

func TestStreamIsTheSameInAnyChunks(t *testing.T) {
	const n = 100_003
	want := make([]byte, n)
	NewStream(5).Read(want)
	got, err := io.ReadAll(iotest.HalfReader(iotest.OneByteReader(Bytes(n, 5))))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read by bytes it differs: %v", err)
	}
	sum := sha256.Sum256(want)
	if Sum(n, 5) != hex.EncodeToString(sum[:]) {
		t.Error("Sum is not the hash of Bytes")
	}
	if Sum(n, 6) == Sum(n, 5) {
		t.Error("the seed has no effect")
	}
}

func TestCheckFindsEveryDifference(t *testing.T) {
	data, _ := io.ReadAll(Bytes(200_000, 1))
	if err := Check(bytes.NewReader(data), 200_000, 1); err != nil {
		t.Error(err)
	}
	flipped := bytes.Clone(data)
	flipped[123_456] ^= 1
	for name, b := range map[string][]byte{"byte 123456 is": flipped, "199999 bytes": data[:199_999], "more than": append(data, 0)} {
		if err := Check(bytes.NewReader(b), 200_000, 1); err == nil || !strings.Contains(err.Error()+"more than", name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestZone(t *testing.T) {
	a, b := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8::1")
	z := &Zone{Any: []netip.Addr{a, b}, Hosts: map[string][]netip.Addr{"v4.test": {a}},
		Missing: map[string]bool{"nx.test": true}, CNAME: map[string]string{"alias.test": "example.test"}}
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		n     int
	}{
		{"Example.TEST.", dns.TypeA, dns.RcodeSuccess, 1},
		{"example.test.", dns.TypeAAAA, dns.RcodeSuccess, 1},
		{"v4.test.", dns.TypeAAAA, dns.RcodeSuccess, 0},
		{"alias.test.", dns.TypeA, dns.RcodeSuccess, 2},
		{"example.test.", dns.TypeHTTPS, dns.RcodeSuccess, 1},
		{"example.test.", dns.TypeMX, dns.RcodeSuccess, 0},
		{"nx.test.", dns.TypeA, dns.RcodeNameError, 0},
		{"example.com.", dns.TypeA, dns.RcodeNameError, 0},
	} {
		rrs, rcode := z.records(dns.Question{Name: c.name, Qtype: c.kind, Qclass: dns.ClassINET})
		if rcode != c.rcode || len(rrs) != c.n {
			t.Errorf("%s %s: %s, %v", c.name, dns.TypeToString[c.kind], dns.RcodeToString[rcode], rrs)
		}
	}
}
