package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// association is one UDP ASSOCIATE: app ⇄ proxy in SOCKS5's envelope, proxy ⇄
// targets plain.
type association struct {
	p      *Proxy
	app    *net.UDPConn
	out    [2]*net.UDPConn // IPv4, IPv6; nil where the machine has none
	client netip.Addr      // datagrams of others are dropped
	back   atomic.Pointer[netip.AddrPort]
	once   sync.Once
}

// run relays until control ends.
func (a *association) run(control io.Reader) {
	var wg sync.WaitGroup
	wg.Go(a.fromApp)
	for _, out := range a.out {
		if out != nil {
			wg.Go(func() { a.fromTargets(out) })
		}
	}
	io.Copy(io.Discard, control)
	a.close()
	wg.Wait()
}

// Close ends run.
func (a *association) Close() error { a.close(); return nil }

func (a *association) close() {
	a.once.Do(func() {
		a.app.Close()
		for _, out := range a.out {
			if out != nil {
				out.Close()
			}
		}
	})
}

func (a *association) fromApp() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := a.app.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if from.Addr().Unmap() != a.client || n < 4 || buf[2] != 0 { // a fragment: RFC 1928 lets us drop it
			continue
		}
		a.back.Store(&from)
		r := bytes.NewReader(buf[3:n])
		host, port, err := readAddr(r)
		if err != nil {
			continue
		}
		addrs, err := a.p.resolve(host)
		if err != nil {
			continue
		}
		out := a.out[1]
		if addrs[0].Is4() {
			out = a.out[0]
		}
		if out != nil {
			a.p.Counters.Datagrams.Add(1)
			out.WriteToUDPAddrPort(buf[n-r.Len():n], netip.AddrPortFrom(addrs[0], port))
		}
	}
}

func (a *association) fromTargets(out *net.UDPConn) {
	buf := make([]byte, 64<<10)
	const room = 3 + 1 + 16 + 2
	for {
		n, from, err := out.ReadFromUDPAddrPort(buf[room:])
		if err != nil {
			if isClosed(err) {
				return
			}
			continue // an ICMP error
		}
		back := a.back.Load()
		if back == nil {
			continue
		}
		head := appendAddr([]byte{0, 0, 0}, from)
		start := room - len(head)
		copy(buf[start:], head)
		a.p.Counters.Datagrams.Add(1)
		a.app.WriteToUDPAddrPort(buf[start:room+n], *back)
	}
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
