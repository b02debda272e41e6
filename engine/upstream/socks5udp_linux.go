package upstream

import (
	"net/netip"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

var (
	_ flow.BatchSender   = (*association)(nil)
	_ flow.BatchReceiver = (*association)(nil)
)

// Send implements flow.BatchSender. Headers and payloads stay where they are:
// the kernel gathers them.
func (a *association) Send(ms []flow.Datagram) (done, lost int, err error) {
	b := a.dialer.sending()
	defer a.dialer.sends.Put(b)
	for done < len(ms) {
		b.reset()
		var head []byte
		for i := done; i < len(ms) && b.fits(maxSOCKSHeaderBytes); i++ {
			m := &ms[i]
			if i == done || m.Addr != ms[i-1].Addr || m.Name != ms[i-1].Name {
				t := flow.Target{Name: m.Name, Addr: m.Addr.Addr(), Port: m.Addr.Port()}
				if !nameable(t) {
					break
				}
				from := len(b.heads)
				b.heads = appendSOCKSAddr(append(b.heads, 0, 0, 0), t)
				head = b.heads[from:]
				a.note(t)
			}
			b.add(head, m.Data, netip.AddrPort{}, false, !a.alone.Load())
		}
		if b.n == 0 {
			done, lost, err = done+1, lost+1, errName
			continue
		}
		n, l, e := b.flush(a.raw, &a.alone)
		done, lost = done+n, lost+l
		if e != nil {
			err = e
		}
		if n < b.n {
			break
		}
	}
	return done, lost, err
}

// Receive implements flow.BatchReceiver.
func (a *association) Receive(f func([]flow.Datagram)) error {
	stats := a.dialer.stats
	return a.dialer.receive(a.raw, &stats.udpOverflow, nil, func(b []byte, _ netip.AddrPort) (flow.Datagram, bool) {
		t, payload, ok := parseSOCKSDatagram(b)
		if ok {
			t, ok = a.source(t)
		}
		if !ok {
			stats.udpBogus.Add(1)
		}
		return flow.Datagram{Data: payload, Addr: t.AddrPort(), Name: t.Name}, ok
	}, f)
}
