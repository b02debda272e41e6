package origin

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/miekg/dns"
)

// dnsTTL in seconds.
const dnsTTL = 60

func (s *Server) serveDNS(a netip.Addr) error {
	address := net.JoinHostPort(a.String(), "53")
	ln, err := s.listen(a, 53)
	if err != nil {
		return err
	}
	pc, err := s.opt.Network.ListenPacket("udp", address)
	if err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	s.closers = append(s.closers, pc.Close)
	for _, srv := range []*dns.Server{{Listener: ln}, {PacketConn: pc}} {
		srv.Handler = dns.HandlerFunc(s.answer)
		s.group.Go(func() error {
			if err := srv.ActivateAndServe(); !s.closing() {
				return err
			}
			return nil
		})
		s.closers = append(s.closers, srv.Shutdown)
	}
	return nil
}

func (s *Server) answer(w dns.ResponseWriter, q *dns.Msg) {
	s.Counters.Queries.Add(1)
	m := new(dns.Msg)
	m.SetReply(q)
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		w.WriteMsg(m)
		return
	}
	m.Authoritative = true
	m.Answer, m.Rcode = s.opt.Zone.records(q.Question[0])
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if e := q.IsEdns0(); e != nil {
			size = int(e.UDPSize())
		}
		m.Truncate(size)
	}
	w.WriteMsg(m)
}

// records answers one question; TXT of big.test is longer than a datagram.
func (z *Zone) records(q dns.Question) ([]dns.RR, int) {
	addrs, ok := z.Lookup(q.Name)
	if !ok {
		return nil, dns.RcodeNameError
	}
	header := func(name string, kind uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: dnsTTL}
	}
	var rrs []dns.RR
	owner := q.Name
	if to, ok := z.CNAME[Canonical(q.Name)]; ok {
		owner = dns.Fqdn(to)
		rrs = append(rrs, &dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: owner})
	}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		for _, a := range addrs {
			switch {
			case a.Is4() && q.Qtype == dns.TypeA:
				rrs = append(rrs, &dns.A{Hdr: header(owner, dns.TypeA), A: a.AsSlice()})
			case a.Is6() && q.Qtype == dns.TypeAAAA:
				rrs = append(rrs, &dns.AAAA{Hdr: header(owner, dns.TypeAAAA), AAAA: a.AsSlice()})
			}
		}
	case dns.TypeTXT:
		n := 1
		if Canonical(q.Name) == "big.test" {
			n = 20
		}
		for i := range n {
			text := fmt.Sprintf("%03d %0200d", i, 0)
			if n == 1 {
				text = "lab"
			}
			rrs = append(rrs, &dns.TXT{Hdr: header(owner, dns.TypeTXT), Txt: []string{text}})
		}
	case dns.TypeHTTPS:
		rrs = append(rrs, &dns.HTTPS{SVCB: dns.SVCB{Hdr: header(owner, dns.TypeHTTPS), Priority: 1, Target: ".",
			Value: []dns.SVCBKeyValue{&dns.SVCBAlpn{Alpn: []string{"h2", "http/1.1"}}}}})
	}
	return rrs, dns.RcodeSuccess
}
