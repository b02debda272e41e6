package engine

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
	"github.com/atlanticproxy/atlanticproxy/engine/rules"
	"github.com/atlanticproxy/atlanticproxy/engine/upstream"
)

// Why tells what would happen to a flow to host, which is a name or an address
// with an optional port (443 if there is none). It asks nobody: no name is
// resolved and nothing is dialled.
func (e *Engine) Why(host string) (api.Why, error) {
	t, err := parseTarget(host)
	if err != nil {
		return api.Why{}, &api.Error{Code: api.ErrBadRequest, Message: err.Error(),
			Hint: "give a host name or an address, with a port if it matters: example.com:22"}
	}
	v := e.rules.Match(rules.Query{Network: flow.TCP, Name: t.Name, Addr: t.Addr, Port: t.Port})
	if v.Rule == "default" && e.isLocal(t.Name, t.Addr) {
		v = flow.Verdict{Kind: flow.Direct, Rule: "local network"}
	}
	w := api.Why{
		Schema: api.Schema, Host: t.Host(), Verdict: v.String(), Rule: v.Rule,
		LastError: e.flows.LastError(t.Host()),
	}
	u := e.carrier(v)
	switch {
	case u == nil:
		w.DNS, w.UDP = "not resolved: it is blocked", "blocked"
		return w, nil
	case t.Name == "":
		w.DNS = "an address: nothing to resolve"
	case u == e.ups.direct:
		w.DNS = "by this machine's own resolvers, when the flow is dialled"
	default:
		w.DNS = "by the upstream, which is sent the name"
	}
	w.Upstream = u.Spec().Name
	w.UDP = e.udpPath(u)
	if e.held.Load() {
		s, now := e.snap.Load(), "no traffic reaches the service now: "
		if e.blocking(s) {
			now = "all traffic is held now: "
		}
		w.Rule += "; but " + now + heldBy(s)
	}
	return w, nil
}

// heldBy says why traffic is held.
func heldBy(s *snapshot) string {
	if s.state == api.Stopping {
		return "it is being turned off"
	}
	return cmp.Or(causeText(s.cause), "the service is still connecting")
}

// isLocal tells whether a flow stays on this machine, in another network that it
// is in, or in its own network: the last only where [protect] lan allows it.
// Without an address the name tells.
func (e *Engine) isLocal(name string, a netip.Addr) bool {
	switch {
	case a.IsValid():
		return a.IsLoopback() || e.names.net.Load().beside(a) || e.opt.Config.Protect.LAN && e.names.isLocal(a)
	case dns.Loopback(name):
		return true
	}
	return e.opt.Config.Protect.LAN && e.names.localName(name)
}

// carrier is the upstream that v leads to, nil if it is none.
func (e *Engine) carrier(v flow.Verdict) *upstream.Upstream {
	switch v.Kind {
	case flow.Block:
		return nil
	case flow.Direct:
		return e.ups.direct
	case flow.Via:
		return e.ups.named(v.Upstream)
	}
	return e.ups.current()
}

func (e *Engine) udpPath(u *upstream.Upstream) string {
	switch policy := e.opt.Config.Protect.UDP; {
	case policy == "block":
		return "blocked (protect.udp)"
	case policy == "direct":
		return "direct (protect.udp)"
	case u.Packets() != nil:
		return "through " + u.Spec().Name
	}
	return u.Spec().Name + " carries no UDP: QUIC is refused so that apps use TCP, the rest is blocked"
}

// parseTarget reads host, host:port, an address, or [address]:port.
func parseTarget(s string) (flow.Target, error) {
	name, addr, port, err := proxy.ParseHostPort(strings.TrimSpace(s), 443)
	return flow.Target{Name: name, Addr: addr, Port: port}, err
}
