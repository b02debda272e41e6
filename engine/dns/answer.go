package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	fakeTTL     = 1  // seconds: the mapping may outlive it, apps' caches should not
	negativeTTL = 60 // seconds, of negative answers made here
	ourUDPSize  = 1232
)

// AppendAnswer answers one packed query, and appends the reply to dst. It blocks
// at most 5 s, and not at all for what is answered here; failing servers give
// SERVFAIL, not an error. The error tells that no answer may be sent, since
// query is not a query. It does not allocate for what was asked before, if dst
// has room.
func (s *Server) AppendAnswer(ctx context.Context, dst, query []byte, overTCP bool) ([]byte, error) {
	if reply, ok := s.quick(dst, query, overTCP); ok {
		return reply, nil
	}
	reply, q, err := s.fast(query, overTCP)
	if q != nil {
		reply = s.slow(ctx, q)
	}
	return append(dst, reply...), err
}

// request is a query that must be asked elsewhere.
type request struct {
	msg   *dns.Msg
	limit int // bytes of the reply
	local bool
}

// fast answers without waiting. If it cannot, it returns the request for slow.
func (s *Server) fast(query []byte, overTCP bool) ([]byte, *request, error) {
	if len(query) < 12 || query[2]&0x80 != 0 {
		return nil, nil, errIgnored
	}
	if opcode := query[2] >> 3 & 0xf; opcode != dns.OpcodeQuery {
		return header(query, dns.RcodeNotImplemented), nil, nil
	}
	m := new(dns.Msg)
	if query[4] != 0 || query[5] != 1 || m.Unpack(query) != nil || len(m.Question) != 1 {
		return header(query, dns.RcodeFormatError), nil, nil
	}
	limit := dns.MaxMsgSize
	opt := m.IsEdns0()
	if !overTCP {
		limit = dns.MinMsgSize
		if opt != nil {
			limit = min(max(int(opt.UDPSize()), dns.MinMsgSize), 4096)
		}
	}
	r := s.route(m)
	if r == nil {
		return nil, &request{m, limit, s.isLocal(m.Question[0])}, nil
	}
	return pack(m, r, limit), nil, nil
}

// header is a reply without sections, of a query that was not understood.
func header(query []byte, rcode byte) []byte {
	b := make([]byte, 12)
	copy(b, query[:4])
	b[2] = b[2]&0x79 | 0x80 // QR; keep opcode and RD
	b[3] = 0x80 | rcode     // RA
	return b
}

// pack finishes a reply to q: EDNS as asked, cut to limit bytes.
func pack(q, r *dns.Msg, limit int) []byte {
	if opt := q.IsEdns0(); opt != nil {
		o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		o.SetUDPSize(ourUDPSize)
		if opt.Do() {
			o.SetDo()
		}
		r.Extra = append(r.Extra, o)
	}
	if len(r.Answer)+len(r.Ns) > 1 {
		r.Compress = true
	}
	if r.Compress || limit < dns.MaxMsgSize {
		r.Truncate(limit)
	}
	b, err := r.Pack()
	if err != nil || len(b) > limit {
		fail := new(dns.Msg)
		fail.SetRcode(q, dns.RcodeServerFailure)
		b, _ = fail.Pack()
	}
	return b
}

// route answers what needs no other server; nil means that it does.
func (s *Server) route(m *dns.Msg) *dns.Msg {
	q := m.Question[0]
	r := new(dns.Msg)
	r.SetReply(m)
	r.RecursionAvailable = true
	if opt := m.IsEdns0(); opt != nil && opt.Version() != 0 {
		r.Rcode = dns.RcodeBadVers
		return r
	}
	name := canonical(q.Name)
	switch {
	case q.Qclass != dns.ClassINET:
		r.Rcode = dns.RcodeRefused
	case q.Qtype == dns.TypeANY: // RFC 8482 section 4.2
		r.Answer = []dns.RR{&dns.HINFO{Hdr: rrHeader(q, dns.TypeHINFO, 3600), Cpu: "RFC8482"}}
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR || q.Qtype >= 128 && q.Qtype < 256:
		r.Rcode = dns.RcodeRefused // meta types: transfers, TSIG …
	case Loopback(name): // RFC 6761 section 6.3
		address(r, q, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), negativeTTL)
	case Nowhere(name):
		nothing(r, dns.RcodeNameError)
	case q.Qtype == dns.TypePTR && s.pointer(r, q, name):
	case s.isLocal(q) && s.opt.Local == nil:
		nothing(r, dns.RcodeNameError)
	case s.opt.Mode == FakeIP && !s.isLocal(q) && isHostName(name):
		return s.fakeAnswer(r, q, name)
	default:
		return nil
	}
	return r
}

// fakeAnswer answers what leads to a connection; nil for other types.
func (s *Server) fakeAnswer(r *dns.Msg, q dns.Question, name string) *dns.Msg {
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		slot, isNew, ok := s.fake.slot(name)
		if !ok {
			r.Rcode = dns.RcodeServerFailure
			return r
		}
		if isNew {
			s.changed()
		}
		var a4, a6 netip.Addr
		if s.fake.p4.IsValid() {
			a4 = s.fake.addr4(slot)
		}
		if s.fake.p6.IsValid() {
			a6 = s.fake.addr6(slot)
		}
		address(r, q, a4, a6, fakeTTL)
	case dns.TypeHTTPS, dns.TypeSVCB: // their address hints would lead past us
		nothing(r, dns.RcodeSuccess)
	default:
		return nil
	}
	return r
}

// address answers A and AAAA; an invalid address and other types are no data.
func address(r *dns.Msg, q dns.Question, a4, a6 netip.Addr, ttl uint32) {
	switch {
	case q.Qtype == dns.TypeA && a4.IsValid():
		r.Answer = []dns.RR{&dns.A{Hdr: rrHeader(q, dns.TypeA, ttl), A: a4.AsSlice()}}
	case q.Qtype == dns.TypeAAAA && a6.IsValid():
		r.Answer = []dns.RR{&dns.AAAA{Hdr: rrHeader(q, dns.TypeAAAA, ttl), AAAA: a6.AsSlice()}}
	default:
		nothing(r, dns.RcodeSuccess)
	}
}

// nothing makes a negative answer that resolvers may cache (RFC 2308).
func nothing(r *dns.Msg, rcode int) {
	r.Rcode = rcode
	r.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  "localhost.", Mbox: "nobody.invalid.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}}
}

func rrHeader(q dns.Question, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// pointer answers PTR of addresses that only we know; false means that it is
// not one.
func (s *Server) pointer(r *dns.Msg, q dns.Question, name string) bool {
	a, ok := reverseAddr(name)
	switch {
	case !ok:
		return false
	case a.IsLoopback():
		r.Answer = []dns.RR{&dns.PTR{Hdr: rrHeader(q, dns.TypePTR, negativeTTL), Ptr: "localhost."}}
		return true
	case !s.fake.contains(a):
		return false
	}
	if host := s.fake.name(a); host != "" {
		r.Answer = []dns.RR{&dns.PTR{Hdr: rrHeader(q, dns.TypePTR, fakeTTL), Ptr: host + "."}}
	} else {
		nothing(r, dns.RcodeNameError)
	}
	return true
}

// isLocal says whether only the machine's own resolvers can know the name.
func (s *Server) isLocal(q dns.Question) bool {
	name := canonical(q.Name)
	switch q.Qtype {
	case dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeDNSKEY:
		if !strings.Contains(name, ".") { // of the root zone
			return false
		}
	}
	if Local(name) || s.isSearched([]byte(name)) {
		return true
	}
	a, ok := reverseAddr(name)
	return ok && (a.IsPrivate() || a.IsLinkLocalUnicast())
}

// isSearched says whether a canonical name is of a domain of this network.
func (s *Server) isSearched(name []byte) bool {
	search := s.search.Load()
	return search != nil && Below(name, *search)
}

// slow asks the servers, through the cache.
func (s *Server) slow(ctx context.Context, q *request) []byte {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := s.cache.get(ctx, q, func(ctx context.Context) (*dns.Msg, error) { return s.ask(ctx, q) })
	out := new(dns.Msg)
	out.SetReply(q.msg)
	out.RecursionAvailable = true
	if errors.Is(err, ErrNoSuchName) {
		nothing(out, dns.RcodeNameError)
		return pack(q.msg, out, q.limit)
	}
	if err != nil {
		s.opt.Log.Debug("dns: no answer", "name", q.msg.Question[0].Name, "err", err)
		out.Rcode = dns.RcodeServerFailure
		return pack(q.msg, out, q.limit)
	}
	out.Rcode, out.AuthenticatedData = r.Rcode&0xf, r.AuthenticatedData
	out.Answer, out.Ns, out.Extra = r.Answer, r.Ns, withoutOPT(r.Extra)
	s.remember(out)
	return pack(q.msg, out, q.limit)
}

// ask asks who can know the name.
func (s *Server) ask(ctx context.Context, q *request) (*dns.Msg, error) {
	if q.local {
		r, err := exchange(ctx, s.opt.Local, q.msg)
		// A search domain may be a public one, and no resolver of this network.
		if !errors.Is(err, ErrNoSuchName) || !s.isSearched([]byte(canonical(q.msg.Question[0].Name))) {
			return r, err
		}
	}
	r, err := exchange(ctx, s.opt.Exchange, q.msg)
	if err != nil {
		return nil, err
	}
	s.filter(r)
	if q.local && s.opt.Mode == FakeIP && len(r.Answer) > 0 {
		s.disguise(r)
	}
	return r, nil
}

// disguise gives a name that exists, of a search domain that is a public one,
// its fake address: the upstream is sent the name, as of other public names.
func (s *Server) disguise(r *dns.Msg) {
	ttl := uint32(min(lifetime(r), negativeTTL*time.Second) / time.Second)
	name, fake := canonical(r.Question[0].Name), new(dns.Msg)
	if !isHostName(name) || s.fakeAnswer(fake, r.Question[0], name) == nil {
		return // nothing that leads to a connection
	}
	for _, rr := range fake.Answer {
		rr.Header().Ttl = ttl
	}
	r.Rcode, r.Answer, r.Ns, r.Extra = fake.Rcode, fake.Answer, fake.Ns, nil
}

// exchange asks by a fresh query, and trusts only an answer to that one.
func exchange(ctx context.Context, ask func(context.Context, []byte) ([]byte, error), m *dns.Msg) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.Id = dns.Id()
	q.RecursionDesired = true
	q.CheckingDisabled = m.CheckingDisabled
	q.Question = m.Question
	opt := m.IsEdns0()
	q.SetEdns0(ourUDPSize, opt != nil && opt.Do())
	b, err := q.Pack()
	if err != nil {
		return nil, err
	}
	if b, err = ask(ctx, b); err != nil {
		return nil, err
	}
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil {
		return nil, err
	}
	if !answers(q, r) {
		return nil, errors.New("the answer is to another question")
	}
	if r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
		return nil, errors.New("the server says " + dns.RcodeToString[r.Rcode])
	}
	return r, nil
}

// answers says whether r is a reply to q (RFC 5452 section 9.1).
func answers(q, r *dns.Msg) bool {
	return r.Response && r.Id == q.Id && len(r.Question) == 1 && len(q.Question) == 1 &&
		r.Question[0].Qtype == q.Question[0].Qtype && r.Question[0].Qclass == q.Question[0].Qclass &&
		strings.EqualFold(r.Question[0].Name, q.Question[0].Name)
}

// filter drops the addresses that Refuse says, and those in the fake range,
// where somebody else's name may be.
func (s *Server) filter(r *dns.Msg) {
	name := canonical(r.Question[0].Name)
	refuses := func(a netip.Addr) bool {
		a = a.Unmap()
		refused := s.fake.contains(a) || s.opt.Refuse(name, a)
		if refused {
			s.opt.Log.Debug("dns: dropped an address of a public name", "name", name, "addr", a)
		}
		return refused
	}
	for _, section := range []*[]dns.RR{&r.Answer, &r.Ns, &r.Extra} {
		*section = slices.DeleteFunc(*section, func(rr dns.RR) bool {
			a, ok := addrOf(rr)
			return ok && refuses(a)
		})
		for _, rr := range *section {
			switch rr := rr.(type) {
			case *dns.HTTPS:
				filterHints(&rr.SVCB, refuses)
			case *dns.SVCB:
				filterHints(rr, refuses)
			}
		}
	}
}

// filterHints drops the hints of which refuses holds for one (RFC 9460 section
// 7.3): apps then ask for the addresses.
func filterHints(rr *dns.SVCB, refuses func(netip.Addr) bool) {
	rr.Value = slices.DeleteFunc(rr.Value, func(kv dns.SVCBKeyValue) bool {
		var hints []net.IP
		switch kv := kv.(type) {
		case *dns.SVCBIPv4Hint:
			hints = kv.Hint
		case *dns.SVCBIPv6Hint:
			hints = kv.Hint
		}
		return slices.ContainsFunc(hints, func(ip net.IP) bool {
			a, ok := netip.AddrFromSlice(ip)
			return !ok || refuses(a)
		})
	})
}

func (s *Server) remember(r *dns.Msg) {
	name := canonical(r.Question[0].Name)
	for _, rr := range r.Answer {
		if a, ok := addrOf(rr); ok && isHostName(name) {
			s.real.add(a, name, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
}

func addrOf(rr dns.RR) (netip.Addr, bool) {
	var ip []byte
	switch rr := rr.(type) {
	case *dns.A:
		ip = rr.A
	case *dns.AAAA:
		ip = rr.AAAA
	}
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

func withoutOPT(in []dns.RR) (out []dns.RR) {
	for _, rr := range in {
		if rr.Header().Rrtype != dns.TypeOPT {
			out = append(out, rr)
		}
	}
	return out
}
