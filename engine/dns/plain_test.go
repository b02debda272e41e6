package dns

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// oldServer answers as handle says, over UDP, and over TCP if that is not nil.
func oldServer(t *testing.T, tcp bool, handle func(w dns.ResponseWriter, q *dns.Msg)) string {
	t.Helper()
	l, pc := listenBoth(t)
	if !tcp {
		l.Close()
	}
	servers := []*dns.Server{{PacketConn: pc, Handler: dns.HandlerFunc(handle)}}
	if tcp {
		servers = append(servers, &dns.Server{Listener: l, Handler: dns.HandlerFunc(handle)})
	}
	for _, srv := range servers {
		ready := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(ready) }
		go func() { _ = srv.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	return pc.LocalAddr().String()
}

// Servers that do not know EDNS say so in several ways; they are asked without,
// and from then on at once.
func TestServerWithoutEDNS(t *testing.T) {
	for name, refuse := range map[string]func(w dns.ResponseWriter, q *dns.Msg){
		"FORMERR": func(w dns.ResponseWriter, q *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		},
		"FORMERR without the question": func(w dns.ResponseWriter, q *dns.Msg) {
			_, _ = w.Write(header(mustPack(q), dns.RcodeFormatError))
		},
		"NOTIMP": func(w dns.ResponseWriter, q *dns.Msg) {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented))
		},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(name+" over "+network, func(t *testing.T) {
				var asked atomic.Int32
				address := oldServer(t, true, func(w dns.ResponseWriter, q *dns.Msg) {
					asked.Add(1)
					if q.IsEdns0() != nil {
						refuse(w, q)
						return
					}
					zone(w, q)
				})
				c := newClientT(t, ClientOptions{Servers: []string{network + "://" + address}})
				begin := time.Now()
				for i := range 3 {
					q := query("host.test.", dns.TypeA)
					q.SetEdns0(ourUDPSize, false)
					b, err := c.Exchange(t.Context(), mustPack(q))
					r := new(dns.Msg)
					if err != nil || r.Unpack(b) != nil || len(r.Answer) != 1 || r.Id != q.Id {
						t.Fatalf("question %d: %v, %v", i, r, err)
					}
				}
				if n := asked.Load(); n != 4 {
					t.Errorf("3 questions were %d", n)
				}
				if d := time.Since(begin); d > udpRetry {
					t.Errorf("it took %v", d)
				}
				addrs, err := c.LookupNetIP(t.Context(), "host.test")
				if err != nil || len(addrs) != 2 {
					t.Error(addrs, err)
				}
			})
		}
	}
}

// A refusal that names no question ends the wait, and the next server is asked.
func TestRefusalWithoutQuestion(t *testing.T) {
	for _, rcode := range []byte{dns.RcodeRefused, dns.RcodeServerFailure} {
		bad := oldServer(t, true, func(w dns.ResponseWriter, q *dns.Msg) { _, _ = w.Write(header(mustPack(q), rcode)) })
		good := oldServer(t, true, zone)
		c := newClientT(t, ClientOptions{Servers: []string{bad, good}})
		begin := time.Now()
		if r := exchangeT(t, c, "host.test.", dns.TypeA); len(r.Answer) != 1 {
			t.Error(r)
		}
		if d := time.Since(begin); d > hedgeAfter {
			t.Errorf("it took %v", d)
		}
	}
}

// A cut answer of a server that takes no TCP is used as far as it goes.
func TestTruncatedWithoutTCP(t *testing.T) {
	address := oldServer(t, false, func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		rr, _ := dns.NewRR("many.test. 60 IN A 192.0.2.1")
		r.Answer, r.Truncated = []dns.RR{rr}, true
		_ = w.WriteMsg(r)
	})
	silent, err := net.Listen("tcp", address) // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	for _, closed := range []bool{false, true} {
		if closed {
			silent.Close()
		}
		c := newClientT(t, ClientOptions{Servers: []string{address}})
		begin := time.Now()
		if r := exchangeT(t, c, "many.test.", dns.TypeA); len(r.Answer) != 1 {
			t.Error(r)
		}
		if d := time.Since(begin); d > wholeTimeout+time.Second {
			t.Errorf("it took %v", d)
		}
	}
}
