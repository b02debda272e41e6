package route

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// What is dialled directly is dialled by the service, which has more rights than
// the app that asks. Firewalls and servers of this machine tell its users apart:
// a cloud's metadata is often root's alone, a database may take a connection by
// loopback for its owner's. So a flow there keeps its asker's rights, by whatever
// door it came, unless a rule that names the target opens it.

// metadata are addresses outside link-local ranges where clouds serve secrets of
// the machine: AWS (IPv6), Google (IPv6), Oracle (IPv6), Azure, Alibaba.
var metadata = [...]netip.Addr{
	netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2, 14: 0x02, 15: 0x54}),
	netip.AddrFrom16([16]byte{0xfd, 0x20, 0x00, 0xce, 14: 0x02, 15: 0x54}),
	netip.AddrFrom16([16]byte{0xfd, 0x00, 0x00, 0xc1, 12: 0xa9, 13: 0xfe, 14: 0xa9, 15: 0xfe}),
	netip.AddrFrom4([4]byte{168, 63, 129, 16}),
	netip.AddrFrom4([4]byte{100, 100, 100, 200}),
}

var (
	errOurselves = errors.New("the target is the local proxy itself")
	errLinkLocal = errors.New("only root reaches link-local addresses and cloud metadata through the service: a [[rule]] that names the address opens it")
	errOthers    = errors.New("the port belongs to another user of this machine: a [[rule]] that names the address opens it")
)

// mayReach is nil if the app of f may reach to, an address that the service would
// dial itself.
func (h *Handler) mayReach(f flow.Flow, to netip.AddrPort) error {
	a := to.Addr().Unmap().WithZone("")
	here := a.IsLoopback() || a.IsUnspecified() // 0.0.0.0 is this machine to connect(2)
	switch {
	case here && f.Door.IsValid() && to.Port() == f.Door.Port():
		return errOurselves
	case !here && !a.IsLinkLocalUnicast() && !slices.Contains(metadata[:], a), h.opts.Owner == nil:
		return nil
	}
	network := f.Network.String()
	peer := f.Dst
	if f.Door.IsValid() {
		peer = f.Door
	}
	asker, known := h.opts.Owner(network, f.Src, peer)
	switch {
	case known && asker == 0:
		return nil
	case !here:
		return errLinkLocal
	case a.IsUnspecified() && a.Is4():
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case a.IsUnspecified():
		a = netip.IPv6Loopback()
	}
	owner, listens := h.opts.Owner(network, netip.AddrPortFrom(a, to.Port()), netip.AddrPortFrom(a, 1))
	if listens && (!known || owner != asker) {
		return errOthers
	}
	return nil
}

// guarded reports whether mayReach decides about d: it is dialled directly, and
// no rule has named it.
func (d *decision) guarded() bool {
	return d.u != nil && d.u.Spec().Scheme == "direct" && !d.verdict.Named
}

// guard refuses d if its address is known and not for the app of f.
func (h *Handler) guard(f flow.Flow, d *decision) {
	if !d.guarded() || !d.target.Addr.IsValid() {
		return
	}
	if err := h.mayReach(f, d.target.AddrPort()); err != nil {
		d.u, d.reason, d.verdict.Rule = nil, flow.Forbidden, err.Error()
	}
}

// guardOf does for the addresses of a name, which direct dialling resolves.
func (h *Handler) guardOf(f flow.Flow) upstream.Guard {
	return func(to netip.AddrPort) error { return h.mayReach(f, to) }
}
