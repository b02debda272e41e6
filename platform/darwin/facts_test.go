package darwin

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
)

func TestParseDNS(t *testing.T) {
	b, err := os.ReadFile("testdata/scutil-dns.txt")
	if err != nil {
		t.Fatal(err)
	}
	ours := []netip.Addr{dns4, dns6}
	for iface, want := range map[string]string{
		"en0": "[192.168.1.1 fe80::1%en0]", // scoped
		"en7": "[9.9.9.9]",                 // no scoped one: the plain one, without ours
		"":    "[9.9.9.9]",
	} {
		if got := fmt.Sprint(parseDNS(string(b), iface, ours)); got != want {
			t.Errorf("resolvers of %q: %s, want %s", iface, got, want)
		}
	}
	if got := parseDNS("No DNS configuration available\n", "en0", nil); got != nil {
		t.Errorf("from nothing: %v", got)
	}
}

func FuzzParseDNS(f *testing.F) {
	b, err := os.ReadFile("testdata/scutil-dns.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b), "en0")
	f.Add("resolver #1\n  nameserver[0] : 1.2.3.4\n  if_index : (\n", "")
	f.Fuzz(func(t *testing.T, out, iface string) {
		seen := map[netip.Addr]bool{}
		for _, a := range parseDNS(out, iface, []netip.Addr{dns4}) {
			if !a.IsValid() || a == dns4 || seen[a] {
				t.Errorf("returned %v", a)
			}
			seen[a] = true
		}
	})
}
