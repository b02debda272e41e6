package route

import (
	"net/netip"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// maxPush is how many datagrams are handed to an upstream in one go.
const maxPush = 64

// push sends datagrams whose way is known and open, on the goroutine that has
// them from the app; see flow.Pusher. It stops at the first that needs more:
// a verdict, a dial, an answer, or a wait.
func (s *session) push(ms []flow.Datagram) (done int) {
	if !s.mu.TryLock() {
		return 0
	}
	defer s.mu.Unlock()
	if s.ended || s.h.opts.Blocked != nil && s.h.opts.Blocked() {
		return 0
	}
	s.touch()
	out := s.h.pushes.Get().(*[maxPush]flow.Datagram)
	defer s.h.pushes.Put(out)
	for done < len(ms) {
		p, n := s.gather(out, ms[done:])
		if n == 0 {
			return done
		}
		k, lost, err := p.sender.Send(out[:n])
		if lost > 0 {
			s.h.udpLost.Add(uint64(lost))
			s.h.opts.Log.Debug("datagrams not sent", "flow", s.flow.ID, "count", lost, "error", err)
		}
		if lost < k {
			s.sent(p, k-lost, payload(out[:k]))
		}
		done += k
		if k < n {
			return done
		}
	}
	return done
}

// gather fills out with those of ms, from the first, that go one way, addressed
// as the upstream is told.
func (s *session) gather(out *[maxPush]flow.Datagram, ms []flow.Datagram) (p *path, n int) {
	for n < len(ms) && n < maxPush {
		e := s.open(ms[n].Addr)
		if e == nil || s.h.isQuery(s.flow.Inbound, ms[n].Addr, ms[n].Data) || p != nil && e.path != p {
			break
		}
		p = e.path
		out[n] = flow.Datagram{Data: ms[n].Data, Addr: e.to.Addr, Name: e.to.Name}
		n++
	}
	return p, n
}

// open is the entry of a destination that datagrams can be sent to at once; nil
// if there is none.
func (s *session) open(ap netip.AddrPort) *dest {
	e := s.lastDest
	if e == nil || s.lastAddr != ap {
		e = s.dests[ap]
	}
	s.lastDest = nil
	if e == nil || e.d.u == nil || e.d.auto && e.d.u != s.h.opts.Current() {
		return nil
	}
	if p := e.path; p == nil || p.sender == nil || p.ended.Load() {
		return nil
	}
	s.lastAddr, s.lastDest = ap, e
	return e
}
