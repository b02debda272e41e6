package upstream

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

var (
	_ flow.BatchSender   = (*directPackets)(nil)
	_ flow.BatchReceiver = (*directPackets)(nil)
)

// Send implements flow.BatchSender.
func (c *directPackets) Send(ms []flow.Datagram) (done, lost int, err error) {
	b := c.dialer.sending()
	defer c.dialer.sends.Put(b)
	for done < len(ms) {
		b.reset()
		known, family := true, true
		for i := done; i < len(ms) && b.fits(0) && known && family; i++ {
			to := ms[i].Addr
			if ms[i].Name != "" {
				var a netip.Addr
				a, known = c.known(NameAddr{Name: ms[i].Name, Port: to.Port()})
				to = netip.AddrPortFrom(a, to.Port())
			}
			if family = !known || c.v6 || to.Addr().Is4(); known && family {
				b.add(nil, ms[i].Data, to, c.v6, !c.alone.Load())
			}
		}
		n, l, e := b.flush(c.raw, &c.alone)
		if b.refused {
			c.wasRefused()
		}
		done, lost = done+n, lost+l
		if e != nil {
			err = e
		}
		if !known || n < b.n {
			break
		}
		if !family {
			done, lost, err = done+1, lost+1, unix.EAFNOSUPPORT
		}
	}
	return done, lost, err
}

// Receive implements flow.BatchReceiver.
func (c *directPackets) Receive(f func([]flow.Datagram)) error {
	return c.dialer.receive(c.raw, &c.dialer.stats.udpOverflow, c.tellRefusals, func(b []byte, from netip.AddrPort) (flow.Datagram, bool) {
		return flow.Datagram{Data: b, Addr: from}, true
	}, f)
}
