package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Names below the network's own domains are asked of its resolvers, exist only
// if those say so, and never get a fake address; without such resolvers the
// configured servers tell.
func TestSearchDomains(t *testing.T) {
	answers := func(rr string) func(context.Context, []byte) ([]byte, error) {
		return func(ctx context.Context, q []byte) ([]byte, error) {
			m := new(dns.Msg)
			if m.Unpack(q) != nil || !strings.HasPrefix(m.Question[0].Name, "nas.") {
				return responder(dns.RcodeNameError, "corp.test. 60 IN SOA a. b. 1 2 3 4 60")(ctx, q)
			}
			return responder(0, fmt.Sprintf(rr, m.Question[0].Name))(ctx, q)
		}
	}
	s := newServerT(t, Options{Local: answers("%s 60 IN A 192.168.7.9"), Exchange: answers("%s 60 IN A 203.0.113.9")})
	is := func(when, name, want string) {
		t.Helper()
		for range 2 { // by the slow way, and by the quick one
			if got := answerText(ask(t, s, query(name, dns.TypeA), false)); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s: %s, want %s", when, name, got, want)
			}
		}
	}
	is("at home", "nas.corp.test.", "NOERROR nas.corp.test. 1 IN A 198.18.")
	is("at home", "www.example.com.corp.test.", "NOERROR www.example.com.corp.test. 1 IN A 198.18.")
	s.SetNetwork([]string{"corp.test"})
	is("at work", "nas.corp.test.", "NOERROR nas.corp.test. 60 IN A 192.168.7.9") // although it has had a fake one
	is("at work", "NAS.Corp.Test.", "NOERROR")
	is("at work", "www.example.com.corp.test.", "NXDOMAIN")
	is("at work", "xcorp.test.", "NOERROR xcorp.test. 1 IN A 198.18.")
	if name, fake := s.Lookup(netip.MustParseAddr("192.168.7.9")); name != "nas.corp.test" || fake {
		t.Errorf("192.168.7.9 is %q, %v: rules for names cannot see it", name, fake)
	}
	s.SetNetwork([]string{"example.com"})
	is("elsewhere", "nas.corp.test.", "NOERROR nas.corp.test. 1 IN A 198.18.") // nothing is remembered of the last network
	is("elsewhere", "www.example.com.", "NXDOMAIN")

	s.opt.Local = func(context.Context, []byte) ([]byte, error) { return nil, ErrNoSuchName }
	s.SetNetwork([]string{"corp.test"})
	is("without resolvers of its own", "nas.corp.test.", "NOERROR nas.corp.test. 60 IN A 198.18.") // it exists: the upstream gets the name
	is("without resolvers of its own", "no.corp.test.", "NXDOMAIN")
	is("without resolvers of its own", "nas.", "NXDOMAIN")
}

// What a network answers is forgotten with it, also if it answers late.
func TestNetworkIsForgotten(t *testing.T) {
	var s *Server
	server := "192.168.1.1"
	s = newServerT(t, Options{Local: func(ctx context.Context, q []byte) ([]byte, error) {
		b, err := responder(0, "nas. 3600 IN A "+server)(ctx, q)
		if server == "192.168.2.2" {
			server = "192.168.3.3"
			s.SetNetwork(nil)
		}
		return b, err
	}})
	for _, want := range []string{"192.168.1.1", "192.168.2.2", "192.168.3.3"} {
		if got := answerText(ask(t, s, query("nas.", dns.TypeA), false)); !strings.HasSuffix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
		if server == "192.168.1.1" {
			server = "192.168.2.2"
			s.SetNetwork(nil)
		}
	}
}

// Names that nobody is asked for, whatever network this is.
func TestNowhere(t *testing.T) {
	for _, mode := range []string{FakeIP, Real} {
		s := newServerT(t, Options{Mode: mode, Local: forbidden})
		s.SetNetwork([]string{"corp.test"})
		for _, name := range []string{
			"wpad.", "WPAD.", "wpad.corp.test.", "wpad.example.com.", "wpad.local.", "isatap.", "isatap.corp.test.",
			"1.2.3.4.", "127.1.", "0x7f.1.", "0x7f000001.", "1.2.3.0X4.", "a.b.80.", "8.", "1.2.3.4.5.",
		} {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeTXT} {
				if r := ask(t, s, query(name, qtype), false); r.Rcode != dns.RcodeNameError || len(r.Answer) > 0 {
					t.Errorf("%s: %s %d: %s", mode, name, qtype, answerText(r))
				}
			}
		}
	}
	s := newServerT(t, Options{})
	for _, name := range []string{"wpadx.example.com.", "x.wpad.example.com.", "1.2.3.4.example.", "0xyz.test.", "1e100.net.", "3com.com."} {
		if r := ask(t, s, query(name, dns.TypeA), false); len(r.Answer) == 0 {
			t.Errorf("%s: %s", name, answerText(r))
		}
	}
}

func TestScopeOf(t *testing.T) {
	for text, want := range map[string]Scope{
		"127.0.0.1": Host, "127.255.1.2": Host, "0.0.0.0": Host, "0.1.2.3": Host, "169.254.169.254": Host, "255.255.255.255": Host, "224.0.0.1": Host,
		"::": Host, "::1": Host, "fe80::1": Host, "ff02::1": Host, "::ffff:127.0.0.1": Host, "::ffff:0.0.0.0": Host, "::127.0.0.1": Host,
		"64:ff9b::7f00:1": Host, "2002:7f00:1::1": Host, "64:ff9b::c0a8:101": Private,
		"10.1.2.3": Private, "172.31.0.1": Private, "192.168.0.1": Private, "fd00::1": Private, "fd00:ec2::254": Private, "::ffff:10.0.0.1": Private,
		"8.8.8.8": Public, "172.32.0.1": Public, "2606:4700::1111": Public, "64:ff9b::808:808": Public, "2002:808:808::1": Public,
	} {
		if got := ScopeOf(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

// FT-09: what public names must not lead to is taken out of answers, in whatever
// record and section it comes.
func TestRebinding(t *testing.T) {
	all := []string{
		"a.test. 60 IN CNAME b.test.",
		"b.test. 60 IN A 203.0.113.5", "b.test. 60 IN A 127.0.0.1", "b.test. 60 IN A 0.0.0.0", "b.test. 60 IN A 10.1.1.1",
		"b.test. 60 IN A 198.18.1.1", "b.test. 60 IN A 192.0.2.77",
		"b.test. 60 IN AAAA 2001:db8::5", "b.test. 60 IN AAAA ::1", "b.test. 60 IN AAAA ::ffff:127.0.0.1", "b.test. 60 IN AAAA fd61:746c:616e:7469::2",
		"b.test. 60 IN HTTPS 1 . alpn=h2 ipv4hint=203.0.113.5", "b.test. 60 IN HTTPS 2 . alpn=h2 ipv4hint=203.0.113.5,127.0.0.1 ipv6hint=2001:db8::5",
		"b.test. 60 IN SVCB 3 . alpn=h2 ipv6hint=fd00::1",
	}
	self := netip.MustParseAddr("192.0.2.77")
	s := newServerT(t, Options{Mode: Real, Fake4: range4, Fake6: range6, Exchange: responder(0, all...), Refuse: func(name string, a netip.Addr) bool {
		return name == "a.test" && (a == self || ScopeOf(a) != Public)
	}})
	r := ask(t, s, query("a.test.", dns.TypeA), true)
	text := answerText(r)
	for _, bad := range []string{"127.0.0.1", "0.0.0.0", "10.1.1.1", "198.18", "192.0.2.77", "::1", "fd61", "192.168"} {
		if strings.Contains(text, bad) {
			t.Errorf("%s is in the answer: %s", bad, text)
		}
	}
	for _, good := range []string{"203.0.113.5", "2001:db8::5", `ipv4hint="203.0.113.5"`, "HTTPS 2", "SVCB 3", "CNAME b.test."} {
		if !strings.Contains(text, good) {
			t.Errorf("%s is not in the answer: %s", good, text)
		}
	}
}

// Failures of a server are not passed on as answers.
func TestRefusingServers(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeRefused, dns.RcodeServerFailure, dns.RcodeNotAuth} {
		s := newServerT(t, Options{Exchange: responder(rcode)})
		if r := ask(t, s, query("x.test.", dns.TypeMX), false); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s became %s", dns.RcodeToString[rcode], dns.RcodeToString[r.Rcode])
		}
	}
	s := newServerT(t, Options{Exchange: func(context.Context, []byte) ([]byte, error) { return nil, errors.New("gone") }})
	if r := ask(t, s, query("x.test.", 65280), false); r.Rcode != dns.RcodeServerFailure {
		t.Error(r)
	}
	s = newServerT(t, Options{Exchange: responder(0, `x.test. 60 IN TYPE65280 \# 2 abcd`)})
	if r := ask(t, s, query("X.tEsT.", 65280), false); len(r.Answer) != 1 || r.Question[0].Name != "X.tEsT." {
		t.Error("an unknown type does not pass", r)
	}
}
