package dns

import (
	"bytes"
	"context"
	"testing"

	"github.com/miekg/dns"
)

func FuzzAnswer(f *testing.F) {
	for _, qtype := range []uint16{dns.TypeA, dns.TypeANY, dns.TypePTR, dns.TypeHTTPS, dns.TypeMX} {
		m := query("www.example.com.", qtype)
		m.SetEdns0(1232, true)
		b, _ := m.Pack()
		f.Add(b, false)
		f.Add(b[:len(b)-3], true)
	}
	s := newServerT(f, Options{Exchange: responder(0, "x.test. 1 IN TXT a")})
	f.Fuzz(func(t *testing.T, in []byte, tcp bool) {
		out, err := s.AppendAnswer(context.Background(), nil, in, tcp)
		if err != nil {
			if out != nil {
				t.Fatal("an error and an answer")
			}
			return
		}
		if len(out) < 12 || out[2]&0x80 == 0 || !bytes.Equal(out[:2], in[:2]) || !tcp && len(out) > 4096 {
			t.Fatalf("%x", out)
		}
		r, q := new(dns.Msg), new(dns.Msg)
		if err := r.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if q.Unpack(in) == nil && len(q.Question) == 1 && len(r.Question) == 1 && r.Question[0] != q.Question[0] {
			t.Fatal("another question", r, q)
		}
	})
}

// FuzzReply gives hostile replies of servers to the cache and the packer.
func FuzzReply(f *testing.F) {
	b, _ := responder(0, "x.test. 9 IN A 192.0.2.1", "x.test. 9 IN CNAME y.test.")(context.Background(), mustPack(query("x.test.", dns.TypeA)))
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newServerT(t, Options{Mode: Real, Exchange: func(_ context.Context, q []byte) ([]byte, error) {
			out := bytes.Clone(in)
			copy(out, q[:min(2, len(out))])
			return out, nil
		}})
		for range 2 {
			ask(t, s, query("x.test.", dns.TypeA), false)
		}
	})
}

func FuzzFile(f *testing.F) {
	s := newServerT(f, Options{})
	s.fake.slot("a.test")
	f.Add(s.snapshot())
	f.Fuzz(func(t *testing.T, in []byte) {
		entries, _, err := parseFile(in, s.fileHead(), s.fake.size)
		if err != nil && len(entries) > 0 {
			t.Fatal("damaged, yet taken")
		}
	})
}

func mustPack(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}
