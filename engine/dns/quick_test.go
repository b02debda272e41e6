package dns

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// anyZone answers with records of many kinds, by the type and name asked for.
func anyZone(ctx context.Context, query []byte) ([]byte, error) {
	q := new(dns.Msg)
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	n := q.Question[0].Name
	rcode := dns.RcodeSuccess
	var rrs []string
	switch {
	case strings.HasPrefix(strings.ToLower(n), "none."):
		rcode, rrs = dns.RcodeNameError, []string{"test. 60 IN SOA a.test. b.test. 1 1 1 1 30"}
	case strings.HasPrefix(strings.ToLower(n), "big."):
		for i := range 60 {
			rrs = append(rrs, fmt.Sprintf("%s 90 IN TXT \"%040d\"", n, i))
		}
	default:
		rrs = map[uint16][]string{
			dns.TypeA:     {n + " 90 IN CNAME Edge.example.", "edge.EXAMPLE. 20 IN A 192.0.2.7", "edge.example. 5 IN A 192.0.2.8"},
			dns.TypeAAAA:  {n + " 90 IN AAAA 2001:db8::7"},
			dns.TypeMX:    {n + " 0 IN MX 1 mail." + n, n + " 90 IN MX 2 mail2." + n},
			dns.TypeTXT:   {n + ` 4294967295 IN TXT "a\"b\\\000\255" ""`},
			dns.TypeHTTPS: {n + ` 90 IN HTTPS 1 . alpn="h3,h2" ipv4hint="192.0.2.7" ech="AAA="`},
			dns.TypeSRV:   {n + " 90 IN SRV 1 2 3 srv.example."},
			dns.TypePTR:   {n + " 90 IN PTR host.example."},
			dns.TypeCAA:   {n + ` 90 IN CAA 0 issue "ca.example"`},
			dns.TypeNS:    {n + " 90 IN NS ns1." + n, n + " 90 IN NS ns2." + n, "ns1." + n + " 90 IN A 192.0.2.1"},
		}[q.Question[0].Qtype]
	}
	b, err := responder(rcode, rrs...)(ctx, query)
	if err == nil && strings.Contains(strings.ToLower(n), "secure") {
		b[3] |= 0x20 // AD
	}
	return b, err
}

// slowly answers without quick.
func slowly(s *Server, query []byte, tcp bool) []byte {
	reply, q, _ := s.fast(query, tcp)
	if q != nil {
		return s.slow(context.Background(), q)
	}
	return reply
}

// same compares quick's answer, if it has one, with the slow one. TTLs may step
// between the two, so only a difference that stays is one.
func same(t *testing.T, s *Server, query []byte, tcp bool) (quick bool) {
	t.Helper()
	var got, want []byte
	for range 3 {
		var ok bool
		if got, ok = s.quick([]byte("before"), query, tcp); !ok {
			if string(got) != "before" {
				t.Fatalf("%x: no answer, but something is written: %q", query, got)
			}
			return false
		}
		if want = slowly(s, query, tcp); string(got) == "before"+string(want) {
			return true
		}
	}
	t.Fatalf("%x tcp %v:\nquick %x\nslow  %x", query, tcp, got[6:], want)
	return true
}

func TestQuickIsTheSameAsSlow(t *testing.T) {
	names := []string{"www.Example.COM.", "a.test.", "_dns._tcp.a-b.test.", "Secure.test.", "none.test.", "big.test.", "nas.", "r.lan.", ".", "localhost.",
		"0.1.18.198.in-addr.arpa.", "7.2.0.192.in-addr.arpa.", "1.1.168.192.in-addr.arpa.", "x.onion.", "use-application-dns.net.", `a\.b.test.`, `a\000.test.`, `\195\188.test.`,
		strings.Repeat(strings.Repeat("x", 62)+".", 4), strings.Repeat("a.", 126) + "b.", strings.Repeat("y", 63) + ".test."}
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypePTR, dns.TypeCAA, dns.TypeNS, dns.TypeANY, dns.TypeAXFR, dns.TypeSOA, dns.TypeOPT}
	for _, o := range []Options{
		{Mode: FakeIP, Exchange: anyZone, Local: anyZone},
		{Mode: FakeIP, Exchange: anyZone, Fake4: range4},
		{Mode: FakeIP, Exchange: anyZone, Fake6: range6, Local: anyZone},
		{Mode: Real, Exchange: anyZone, Local: anyZone},
	} {
		s := newServerT(t, o)
		var quick, all int
		for _, name := range names {
			for _, qtype := range types {
				for variant := range 2 * 2 * 2 * 6 {
					if raceEnabled && (variant+int(qtype))%7 != 0 {
						continue // nothing is concurrent here
					}
					q := query(name, qtype)
					q.Id = uint16(variant * 7919)
					q.RecursionDesired, q.CheckingDisabled = variant&1 == 0, variant&2 != 0
					tcp := variant&4 != 0
					switch variant >> 3 {
					case 1:
						q.SetEdns0(1232, false)
					case 2:
						q.SetEdns0(4096, true)
					case 3:
						q.SetEdns0(100, true)
					case 4:
						q.SetEdns0(512, false)
						q.IsEdns0().SetVersion(1)
					case 5:
						q.SetEdns0(65535, false)
						q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
					}
					b, err := q.Pack()
					if err != nil {
						t.Fatal(name, err)
					}
					slowly(s, b, tcp) // so that it was asked before
					all++
					if same(t, s, b, tcp) {
						quick++
					}
				}
			}
		}
		if quick < all/8 {
			t.Errorf("%s: %d of %d were quick", o.Mode, quick, all)
		}
	}
}

// TestQuickIsQuick: what is asked most is not left to the slow way.
func TestQuickIsQuick(t *testing.T) {
	fake := newServerT(t, Options{Exchange: anyZone, Local: anyZone})
	real := newServerT(t, Options{Mode: Real, Exchange: anyZone})
	for _, tt := range []struct {
		s     *Server
		name  string
		qtype uint16
	}{
		{fake, "WWW.example.com.", dns.TypeA}, {fake, "www.example.com.", dns.TypeAAAA}, {fake, "www.example.com.", dns.TypeHTTPS},
		{fake, "example.com.", dns.TypeSRV}, {fake, "nas.lan.", dns.TypeA}, {fake, "none.test.", dns.TypeTXT},
		{real, "www.example.com.", dns.TypeA}, {real, "www.example.com.", dns.TypeHTTPS}, {real, "7.2.0.192.in-addr.arpa.", dns.TypePTR},
	} {
		for _, edns := range []bool{false, true} {
			q := query(tt.name, tt.qtype)
			if edns {
				q.SetEdns0(1232, true)
			}
			b := mustPack(q)
			// HTTPS is quick once the name has an address.
			slowly(tt.s, mustPack(query(tt.name, dns.TypeA)), false)
			slowly(tt.s, b, false)
			out := make([]byte, 0, 1024)
			reply, ok := tt.s.quick(out, b, false)
			if !ok {
				t.Errorf("%s %s edns %v is slow", tt.name, dns.TypeToString[tt.qtype], edns)
				continue
			}
			r := new(dns.Msg)
			if err := r.Unpack(reply); err != nil || r.Question[0].Name != tt.name || r.Id != q.Id {
				t.Errorf("%s: %v, %v", tt.name, r, err)
			}
			if raceEnabled {
				continue
			}
			if n := testing.AllocsPerRun(100, func() { tt.s.quick(out, b, false) }); n != 0 {
				t.Errorf("%s %s: %v allocations", tt.name, dns.TypeToString[tt.qtype], n)
			}
		}
	}
}

// TestQuickTTL: what comes from the cache grows older, and expires; in real
// mode it keeps the address's name alive as a slow answer does.
func TestQuickTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		s := newServerT(t, Options{Mode: Real, Exchange: func(ctx context.Context, q []byte) ([]byte, error) {
			asked.Add(1)
			return responder(0, "a.test. 100 IN A 192.0.2.7", "a.test. 300 IN TXT x")(ctx, q)
		}})
		b := mustPack(query("a.test.", dns.TypeA))
		slowly(s, b, false)
		time.Sleep(99*time.Second + 900*time.Millisecond)
		reply, ok := s.quick(nil, b, false)
		r := new(dns.Msg)
		if err := r.Unpack(reply); !ok || err != nil || r.Answer[0].Header().Ttl != 1 || r.Answer[1].Header().Ttl != 201 {
			t.Fatal(ok, r, err)
		}
		if !bytes.Equal(reply, slowly(s, b, false)) {
			t.Error("not the same as slow")
		}
		time.Sleep(100 * time.Millisecond)
		if _, ok := s.quick(nil, b, false); ok {
			t.Error("answered from the cache after the TTL")
		}
		time.Sleep(rememberAtLeast - 200*time.Millisecond) // since the last answer
		if name, _ := s.Lookup(netip.MustParseAddr("192.0.2.7")); name != "a.test" {
			t.Errorf("the name is %q", name)
		}
		if asked.Load() != 1 {
			t.Error(asked.Load(), "exchanges")
		}
	})
}

// TestLoadLeavesSpecialNamesOut: a mapping of an older version does not bring back
// addresses of names that have none any more.
func TestLoadLeavesSpecialNamesOut(t *testing.T) {
	file := t.TempDir() + "/names"
	a := newServerT(t, Options{File: file})
	for _, name := range []string{"x.localhost", "x.onion", "nas.lan", "a.test"} {
		a.fake.slot(name)
	}
	if err := a.Save(); err != nil {
		t.Fatal(err)
	}
	b := newServerT(t, Options{File: file})
	if len(b.fake.byName) != 1 {
		t.Errorf("%d names", len(b.fake.byName))
	}
	if r := ask(t, b, query("x.onion.", dns.TypeA), false); r.Rcode != dns.RcodeNameError {
		t.Error(r)
	}
	if r := ask(t, b, query("a.test.", dns.TypeA), false); len(r.Answer) != 1 {
		t.Error(r)
	}
}

// FuzzQuick compares quick with the slow way over any query.
func FuzzQuick(f *testing.F) {
	servers := []*Server{
		newServerT(f, Options{Exchange: anyZone, Local: anyZone}),
		newServerT(f, Options{Mode: Real, Exchange: anyZone}),
	}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT, dns.TypeMX} {
		for _, name := range []string{"www.Example.com.", "none.test.", "big.test.", "nas.lan."} {
			q := query(name, qtype)
			b := mustPack(q)
			f.Add(b, false)
			q.SetEdns0(1232, true)
			f.Add(mustPack(q), true)
			for _, s := range servers {
				slowly(s, b, false)
				slowly(s, mustPack(q), false)
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, tcp bool) {
		for _, s := range servers {
			if same(t, s, in, tcp) {
				continue
			}
			slowly(s, in, tcp)
			same(t, s, in, tcp)
		}
	})
}
