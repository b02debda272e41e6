package dns

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	headBytes    = 12
	optBytes     = 11  // of an OPT record without options (RFC 6891 section 6.1.2)
	maxNameBytes = 255 // RFC 1035 section 3.1
)

// question is a query as quick understands it: one question of class IN, and
// beside it at most an OPT record without options.
type question struct {
	head     []byte // of the query, 12 bytes
	wire     []byte // name, type and class, as asked
	buf      [maxNameBytes]byte
	name     int // bytes of buf that are the name, canonical
	qtype    uint16
	edns, do bool
	cd       bool
	limit    int // bytes of the reply
}

// quick appends to dst the reply to a common query: for a name that has a fake
// address, or from the cache. It does not allocate if dst has room, and what it
// appends is byte for byte what the slow way answers. False means that only the
// slow way can tell; dst is not changed then.
//
//	names with a fake address    are only those that route would fake again,
//	                             unless the network calls them its own
//	questions in the cache       are only those that route has no answer for
//
// So neither needs route's checks.
func (s *Server) quick(dst, query []byte, overTCP bool) ([]byte, bool) {
	var q question
	if !q.parse(query, overTCP) {
		return dst, false
	}
	now := time.Now()
	if s.opt.Mode == FakeIP && !s.isSearched(q.canonical()) {
		switch q.qtype {
		case dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB:
			if slot, ok := s.fake.known(q.canonical(), now); ok {
				return s.quickFake(dst, &q, slot)
			}
		}
	}
	e, age := s.cache.quick(&q, now)
	if e == nil || e.size+q.optBytes() > q.limit {
		return dst, false
	}
	for i := range e.addrs {
		a := &e.addrs[i]
		s.real.add(a.addr, e.name, time.Duration(a.ttl-min(a.ttl, age))*time.Second)
	}
	out := q.appendHead(dst, e.packed[3]&0x2f, binary.BigEndian.Uint16(e.packed[6:]), binary.BigEndian.Uint16(e.packed[8:]), binary.BigEndian.Uint16(e.packed[10:]))
	records := len(out)
	out = append(out, e.packed[e.records:]...)
	for _, off := range e.ttls {
		field := out[records+int(off)-e.records:]
		ttl := binary.BigEndian.Uint32(field)
		binary.BigEndian.PutUint32(field, ttl-min(ttl, age))
	}
	return q.appendOPT(out), true
}

// quickFake answers for a name that has slot.
func (s *Server) quickFake(dst []byte, q *question, slot uint32) ([]byte, bool) {
	var a netip.Addr
	switch {
	case q.qtype == dns.TypeA && s.fake.p4.IsValid():
		a = s.fake.addr4(slot)
	case q.qtype == dns.TypeAAAA && s.fake.p6.IsValid():
		a = s.fake.addr6(slot)
	}
	size := headBytes + len(q.wire) + q.optBytes()
	if !a.IsValid() {
		if size+len(s.noData) > q.limit {
			return dst, false
		}
		dst = q.appendHead(dst, dns.RcodeSuccess, 0, 1, 0)
		return q.appendOPT(append(dst, s.noData...)), true
	}
	if size+len(q.wire)+6+a.BitLen()/8 > q.limit {
		return dst, false
	}
	dst = q.appendHead(dst, dns.RcodeSuccess, 1, 0, 0)
	dst = append(dst, q.wire...) // the owner is the name as asked, and so are type and class
	dst = binary.BigEndian.AppendUint32(dst, fakeTTL)
	if b := a.As16(); a.Is4() {
		dst = append(append(dst, 0, 4), b[12:]...)
	} else {
		dst = append(append(dst, 0, 16), b[:]...)
	}
	return q.appendOPT(dst), true
}

// canonical is the name in lower case, without the trailing dot.
func (q *question) canonical() []byte { return q.buf[:q.name] }

// parse reads query. It is false for whatever is not common: the slow way then
// judges.
func (q *question) parse(query []byte, overTCP bool) bool {
	if len(query) < headBytes || query[2]&0xf8 != 0 || // a reply, or another opcode
		binary.BigEndian.Uint32(query[4:]) != 1<<16 || // QDCOUNT 1, ANCOUNT 0
		binary.BigEndian.Uint32(query[8:]) > 1 { // NSCOUNT 0, ARCOUNT 0 or 1
		return false
	}
	q.head = query[:headBytes]
	name, end := canonicalWire(q.buf[:0], query[headBytes:])
	end += headBytes
	if len(name) == 0 || len(query) < end+4 || binary.BigEndian.Uint16(query[end+2:]) != dns.ClassINET {
		return false
	}
	q.name, q.qtype, q.cd = len(name), binary.BigEndian.Uint16(query[end:]), query[3]&0x10 != 0
	q.wire = query[headBytes : end+4]
	q.limit = dns.MinMsgSize
	rest := query[end+4:]
	if query[11] == 1 {
		// Root, OPT, payload size, extended RCODE, version 0, flags, no options.
		if len(rest) != optBytes || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT || rest[6] != 0 || rest[9] != 0 || rest[10] != 0 {
			return false
		}
		q.edns, q.do = true, rest[7]&0x80 != 0
		q.limit = min(max(int(binary.BigEndian.Uint16(rest[3:])), dns.MinMsgSize), 4096)
		rest = nil
	}
	if overTCP {
		q.limit = dns.MaxMsgSize
	}
	return len(rest) == 0
}

// canonicalWire reads a name in wire format into buf, lower case, with dots; end
// is where the name ends. It yields nothing for the root and for names that
// have more than letters, digits, hyphens and underscores in them.
func canonicalWire(buf, wire []byte) (name []byte, end int) {
	for end < len(wire) {
		n := int(wire[end])
		end++
		if n == 0 {
			return buf, end
		}
		if n > 63 || end+n >= len(wire) || len(buf)+1+n > maxNameBytes-2 {
			return nil, 0
		}
		if len(buf) > 0 {
			buf = append(buf, '.')
		}
		for _, c := range wire[end : end+n] {
			switch {
			case c >= 'A' && c <= 'Z':
				c += 'a' - 'A'
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return nil, 0
			}
			buf = append(buf, c)
		}
		end += n
	}
	return nil, 0
}

func (q *question) optBytes() int {
	if q.edns {
		return optBytes
	}
	return 0
}

// appendHead appends the header and the question; low are the bits AD and RCODE.
func (q *question) appendHead(dst []byte, low byte, an, ns, ar uint16) []byte {
	if q.edns {
		ar++
	}
	dst = append(dst, q.head[0], q.head[1],
		0x80|q.head[2]&1,        // QR; RD as asked
		0x80|q.head[3]&0x10|low, // RA; CD as asked
		0, 1, byte(an>>8), byte(an), byte(ns>>8), byte(ns), byte(ar>>8), byte(ar))
	return append(dst, q.wire...)
}

func (q *question) appendOPT(dst []byte) []byte {
	if !q.edns {
		return dst
	}
	var flags byte
	if q.do {
		flags = 0x80
	}
	return append(dst, 0, 0, byte(dns.TypeOPT), ourUDPSize>>8, ourUDPSize&0xff, 0, 0, flags, 0, 0, 0)
}
