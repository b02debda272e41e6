package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	range4 = netip.MustParsePrefix("198.18.0.0/15")
	range6 = netip.MustParsePrefix("fd61:746c:616e:7469::/64")
)

// responder turns RR texts into an Exchange function.
func responder(rcode int, rrs ...string) func(context.Context, []byte) ([]byte, error) {
	return func(_ context.Context, query []byte) ([]byte, error) {
		q, r := new(dns.Msg), new(dns.Msg)
		if err := q.Unpack(query); err != nil {
			return nil, err
		}
		r.SetRcode(q, rcode)
		for _, text := range rrs {
			rr, err := dns.NewRR(text)
			if err != nil {
				return nil, err
			}
			if rr.Header().Rrtype == dns.TypeSOA {
				r.Ns = append(r.Ns, rr)
			} else {
				r.Answer = append(r.Answer, rr)
			}
		}
		return r.Pack()
	}
}

func forbidden(context.Context, []byte) ([]byte, error) { return nil, errors.New("must not be asked") }

func newServerT(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Mode == "" {
		o.Mode = FakeIP
	}
	if o.Mode == FakeIP && !o.Fake4.IsValid() && !o.Fake6.IsValid() {
		o.Fake4, o.Fake6 = range4, range6
	}
	if o.Exchange == nil {
		o.Exchange = forbidden
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func query(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	return m
}

func ask(t testing.TB, s *Server, m *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = s.AppendAnswer(context.Background(), nil, b, tcp); err != nil {
		t.Fatal(err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil {
		t.Fatal(err)
	}
	if r.Id != m.Id || !r.Response {
		t.Fatal("not a reply to the query")
	}
	return r
}

func answerText(r *dns.Msg) string {
	s := dns.RcodeToString[r.Rcode]
	for _, rr := range r.Answer {
		s += " " + strings.ReplaceAll(rr.String(), "\t", " ")
	}
	return s
}

func TestFakeAnswers(t *testing.T) {
	s := newServerT(t, Options{})
	tests := []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"Example.COM.", dns.TypeA, "NOERROR Example.COM. 1 IN A 198.18.1.0"},
		{"example.com.", dns.TypeAAAA, "NOERROR example.com. 1 IN AAAA fd61:746c:616e:7469:0:1::"},
		{"other.example.", dns.TypeA, "NOERROR other.example. 1 IN A 198.18.1.1"},
		{"example.com.", dns.TypeHTTPS, "NOERROR"},
		{"example.com.", dns.TypeSVCB, "NOERROR"},
		{"0.1.18.198.in-addr.arpa.", dns.TypePTR, "NOERROR 0.1.18.198.in-addr.arpa. 1 IN PTR example.com."},
		{"9.9.18.198.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"1.0.0.127.in-addr.arpa.", dns.TypePTR, "NOERROR 1.0.0.127.in-addr.arpa. 60 IN PTR localhost."},
		{"x.LOCALHOST.", dns.TypeA, "NOERROR x.LOCALHOST. 60 IN A 127.0.0.1"},
		{"localhost.", dns.TypeAAAA, "NOERROR localhost. 60 IN AAAA ::1"},
		{"localhost.", dns.TypeMX, "NOERROR"},
		{"use-application-dns.net.", dns.TypeA, "NXDOMAIN"},
		{"_dns.resolver.arpa.", dns.TypeSVCB, "NXDOMAIN"},
		{"x.onion.", dns.TypeA, "NXDOMAIN"},
		{"a.invalid.", dns.TypeA, "NXDOMAIN"},
		{"example.com.", dns.TypeANY, `NOERROR example.com. 3600 IN HINFO "RFC8482" ""`},
		{"example.com.", dns.TypeAXFR, "REFUSED"},
		{"printer.local.", dns.TypeA, "NXDOMAIN"}, // no Local
		{"single.", dns.TypeA, "NXDOMAIN"},
	}
	for _, tt := range tests {
		r := ask(t, s, query(tt.name, tt.qtype), false)
		if got := answerText(r); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.name, dns.TypeToString[tt.qtype], got, tt.want)
		}
		if len(r.Answer) == 0 && r.Rcode != dns.RcodeRefused && (len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA) {
			t.Errorf("%s: a negative answer without SOA", tt.name)
		}
		if r.Question[0].Name != tt.name {
			t.Errorf("%s: the question became %s", tt.name, r.Question[0].Name)
		}
	}
	for addr, want := range map[string]string{"198.18.1.0": "example.com true", "::ffff:198.18.1.1": "other.example true", "fd61:746c:616e:7469:0:1::": "example.com true", "198.18.0.2": " true", "fd61:746c:616e:7469::2": " true", "198.19.255.255": " true", "192.0.2.1": " false"} {
		name, fake := s.Lookup(netip.MustParseAddr(addr))
		if got := fmt.Sprint(name, " ", fake); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	q := query("example.com.", dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	if r := ask(t, s, q, false); r.Rcode != dns.RcodeRefused {
		t.Error(r)
	}
}

func TestOneFamily(t *testing.T) {
	s := newServerT(t, Options{Fake4: range4})
	if r := ask(t, s, query("a.test.", dns.TypeAAAA), false); len(r.Answer) != 0 || r.Rcode != 0 {
		t.Error(r)
	}
}

func TestLocalNames(t *testing.T) {
	s := newServerT(t, Options{Local: responder(0, "x. 5 IN A 192.168.1.9")})
	for _, name := range []string{"printer.local.", "nas.", "r.home.arpa.", "r.lan.", "1.1.168.192.in-addr.arpa.", "x.10.in-addr.arpa."} {
		qtype := dns.TypeA
		if strings.HasSuffix(name, "in-addr.arpa.") {
			qtype = dns.TypePTR
		}
		r := ask(t, s, query(name, qtype), false)
		if isLocal := name != "x.10.in-addr.arpa."; isLocal != (len(r.Answer) == 1) {
			t.Errorf("%s: %s", name, answerText(r))
		}
	}
}

func TestOddQueries(t *testing.T) {
	s := newServerT(t, Options{})
	good, _ := query("example.com.", dns.TypeA).Pack()
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	tests := []struct {
		name  string
		in    []byte
		rcode int // -1: silence
	}{
		{"short", good[:11], -1},
		{"empty", nil, -1},
		{"reply", change(func(b []byte) []byte { b[2] |= 0x80; return b }), -1},
		{"status", change(func(b []byte) []byte { b[2] |= 2 << 3; return b }), dns.RcodeNotImplemented},
		{"two questions", change(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), dns.RcodeFormatError},
		{"no question", change(func(b []byte) []byte { b[5] = 0; return b[:12] }), dns.RcodeFormatError},
		{"65535 questions", change(func(b []byte) []byte { b[4], b[5] = 255, 255; return b }), dns.RcodeFormatError},
		{"cut", good[:20], dns.RcodeFormatError},
		{"compression loop", change(func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }), dns.RcodeFormatError},
	}
	for _, tt := range tests {
		b, err := s.AppendAnswer(context.Background(), nil, tt.in, false)
		if tt.rcode < 0 {
			if err == nil || b != nil {
				t.Errorf("%s: answered", tt.name)
			}
			continue
		}
		if err != nil || len(b) > len(tt.in) || int(b[3]&0xf) != tt.rcode || b[2]&0x80 == 0 || !bytes.Equal(b[:2], tt.in[:2]) {
			t.Errorf("%s: %x %v", tt.name, b, err)
		}
	}
	q := query("example.com.", dns.TypeA)
	q.SetEdns0(4096, true)
	if r := ask(t, s, q, false); r.IsEdns0() == nil || !r.IsEdns0().Do() || r.IsEdns0().UDPSize() != ourUDPSize {
		t.Error("EDNS is not echoed", r)
	}
	q.IsEdns0().SetVersion(1)
	if r := ask(t, s, q, false); r.Rcode != dns.RcodeBadVers {
		t.Error(r)
	}
}

func TestTruncation(t *testing.T) {
	var rrs []string
	for i := range 100 {
		rrs = append(rrs, fmt.Sprintf("big.test. 60 IN TXT \"%040d\"", i))
	}
	s := newServerT(t, Options{Exchange: responder(0, rrs...)})
	for _, size := range []uint16{0, 100, 1232, 65535} {
		q := query("big.test.", dns.TypeTXT)
		want := 512
		if size > 0 {
			q.SetEdns0(size, false)
			want = min(max(int(size), 512), 4096)
		}
		b, _ := q.Pack()
		got, err := s.AppendAnswer(context.Background(), nil, b, false)
		if err != nil || len(got) > want || got[2]&2 == 0 {
			t.Errorf("size %d: %d bytes, tc %v", size, len(got), got[2]&2 != 0)
		}
	}
	if r := ask(t, s, query("big.test.", dns.TypeTXT), true); r.Truncated || len(r.Answer) != 100 {
		t.Error("cut over TCP")
	}
}

func TestFakeMapReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := newFakeMap(netip.MustParsePrefix("198.18.0.0/22"), netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		n := 1024 - 256 - 1
		seen := map[netip.Addr]bool{}
		for i := range n {
			slot, isNew, ok := m.slot(fmt.Sprint("n", i))
			a := m.addr4(slot)
			if !ok || !isNew || seen[a] || !m.p4.Contains(a) || a == netip.MustParseAddr("198.18.3.255") {
				t.Fatal(i, a, ok)
			}
			seen[a] = true
		}
		if _, _, ok := m.slot("one more"); ok {
			t.Error("an address in recent use was taken away")
		}
		first, _, _ := m.slot("n0")
		time.Sleep(reuseAfter + time.Second)
		m.name(m.addr4(first)) // a flow uses it: n1 is the oldest now
		slot, isNew, ok := m.slot("one more")
		if !ok || !isNew || slot == first {
			t.Error(slot, ok)
		}
		if again, isNew, _ := m.slot("n0"); again != first || isNew {
			t.Error("n0 moved")
		}
		if m.name(m.addr4(slot)) != "one more" || len(m.byName) != n || len(m.bySlot) != n || m.lru.Len() != n {
			t.Error("the maps disagree")
		}
	})
}

func TestSurvivesRestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "names")
	a := newServerT(t, Options{File: file})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	for i := range 500 {
		ask(t, a, query(fmt.Sprintf("n%d.test.", i), dns.TypeA), false)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b := newServerT(t, Options{File: file})
	for i := range 500 {
		q := query(fmt.Sprintf("n%d.test.", i), dns.TypeA)
		if x, y := answerText(ask(t, a, q, false)), answerText(ask(t, b, q, false)); x != y {
			t.Fatal(x, y)
		}
	}
	r := ask(t, b, query("new.test.", dns.TypeA), false)
	if slot, _ := b.fake.slotOf(netip.MustParseAddr(r.Answer[0].(*dns.A).A.String())); slot < 500+crashGap {
		t.Error("a name that was not saved could meet another's address", slot)
	}

	good, _ := os.ReadFile(file)
	for name, bad := range map[string][]byte{
		"cut": good[:len(good)/2], "empty": {}, "flipped": append(append(bytes.Clone(good[:100]), good[100]^1), good[101:]...),
		"noise": bytes.Repeat([]byte{0xff}, 1000), "other range": bytes.Replace(good, []byte("198.18"), []byte("198.16"), 1),
	} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c := newServerT(t, Options{File: file})
		if len(c.fake.byName) != 0 {
			t.Errorf("%s: %d names were taken", name, len(c.fake.byName))
		}
	}
}

func TestCacheAndSingleflight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		answer := responder(0, "mx.test. 30 IN MX 1 m.test.")
		s := newServerT(t, Options{Exchange: func(ctx context.Context, q []byte) ([]byte, error) {
			asked.Add(1)
			time.Sleep(time.Second)
			return answer(ctx, q)
		}})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { ask(t, s, query("mx.test.", dns.TypeMX), false) })
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		if r := ask(t, s, query("MX.test.", dns.TypeMX), false); r.Answer[0].Header().Ttl != 20 {
			t.Error("ttl", r.Answer[0].Header().Ttl)
		}
		if n := asked.Load(); n != 1 {
			t.Error(n, "exchanges")
		}
		time.Sleep(21 * time.Second)
		ask(t, s, query("mx.test.", dns.TypeMX), false)
		if n := asked.Load(); n != 2 {
			t.Error(n, "exchanges after the TTL")
		}
	})
}

func TestNegativeCache(t *testing.T) {
	for name, tt := range map[string]struct {
		rcode int
		rr    []string
		want  int32
	}{
		"NXDOMAIN with SOA": {dns.RcodeNameError, []string{"test. 60 IN SOA a. b. 1 1 1 1 30"}, 1},
		"NODATA with SOA":   {0, []string{"test. 60 IN SOA a. b. 1 1 1 1 30"}, 1},
		"without SOA":       {dns.RcodeNameError, nil, 2},
		"zero ttl":          {0, []string{"x.test. 0 IN TXT a"}, 2},
		"SERVFAIL":          {dns.RcodeServerFailure, nil, 2},
	} {
		var asked atomic.Int32
		answer := responder(tt.rcode, tt.rr...)
		s := newServerT(t, Options{Exchange: func(ctx context.Context, q []byte) ([]byte, error) { asked.Add(1); return answer(ctx, q) }})
		for range 2 {
			if r := ask(t, s, query("x.test.", dns.TypeTXT), false); r.Rcode != tt.rcode {
				t.Errorf("%s: %v", name, r)
			}
		}
		if asked.Load() != tt.want {
			t.Errorf("%s: %d exchanges", name, asked.Load())
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	for i := range 5000 {
		c.mu.Lock()
		c.store(cacheKey{name: fmt.Sprint(i)}, &cached{packed: make([]byte, 8000)}, time.Hour)
		c.mu.Unlock()
	}
	if c.bytes > cacheBytes || len(c.known) < 500 {
		t.Error(c.bytes, len(c.known))
	}
}

// FT-09: whatever a server says, an answer or SERVFAIL comes within 5 s.
func TestHostileServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		edit := func(f func(r *dns.Msg)) func(context.Context, []byte) ([]byte, error) {
			return func(_ context.Context, query []byte) ([]byte, error) {
				q, r := new(dns.Msg), new(dns.Msg)
				_ = q.Unpack(query)
				r.SetReply(q)
				f(r)
				return r.Pack()
			}
		}
		for name, exchange := range map[string]func(context.Context, []byte) ([]byte, error){
			"silent":         func(ctx context.Context, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
			"error":          forbidden,
			"noise":          func(context.Context, []byte) ([]byte, error) { return bytes.Repeat([]byte{0xc0}, 60000), nil },
			"nothing":        func(context.Context, []byte) ([]byte, error) { return nil, nil },
			"echo":           func(_ context.Context, q []byte) ([]byte, error) { return q, nil },
			"other id":       edit(func(r *dns.Msg) { r.Id++ }),
			"other question": edit(func(r *dns.Msg) { r.Question[0].Name = "evil.test." }),
		} {
			s := newServerT(t, Options{Mode: Real, Exchange: exchange})
			start := time.Now()
			r := ask(t, s, query("x.test.", dns.TypeA), false)
			if r.Rcode != dns.RcodeServerFailure || time.Since(start) > 5*time.Second {
				t.Errorf("%s: %v after %v", name, r, time.Since(start))
			}
		}
	})
	var chain []string
	for i := range 100 {
		chain = append(chain, fmt.Sprintf("c%d.test. 60 IN CNAME c%d.test.", i, i+1))
	}
	s := newServerT(t, Options{Mode: Real, Exchange: responder(0, append(chain, "c100.test. 60 IN A 192.0.2.1")...)})
	if r := ask(t, s, query("c0.test.", dns.TypeA), true); len(r.Answer) != 101 {
		t.Error("chain", len(r.Answer))
	}
	if name, _ := s.Lookup(netip.MustParseAddr("192.0.2.1")); name != "c0.test" {
		t.Errorf("the name asked for is not the name dialled: %q", name)
	}
}

func TestRealMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServerT(t, Options{Mode: Real, Fake4: range4, Exchange: func(ctx context.Context, b []byte) ([]byte, error) {
			q := new(dns.Msg)
			_ = q.Unpack(b)
			n := q.Question[0].Name
			return responder(0, n+" 90 IN A 192.0.2.7", n+" 90 IN A 127.0.0.1", n+" 90 IN A 10.1.1.1", n+" 90 IN A 198.18.1.0")(ctx, b)
		}})
		addr := netip.MustParseAddr("192.0.2.7")
		if r := ask(t, s, query("a.test.", dns.TypeA), false); len(r.Answer) != 1 {
			t.Error("rebinding answers pass", answerText(r))
		}
		if name, fake := s.Lookup(addr); name != "a.test" || fake {
			t.Error(name, fake)
		}
		ask(t, s, query("b.test.", dns.TypeA), false)
		if name, _ := s.Lookup(addr); name != "" {
			t.Error("an ambiguous address has a name", name)
		}
		time.Sleep(91 * time.Second)
		ask(t, s, query("b.test.", dns.TypeA), false)
		if name, _ := s.Lookup(addr); name != "b.test" {
			t.Error(name)
		}
		for i := range maxRemembered + 1000 {
			s.real.add(netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}), "x", time.Hour)
		}
		if len(s.real.names) > maxRemembered {
			t.Error(len(s.real.names))
		}
	})
}
