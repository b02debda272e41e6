package engine

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/engine/dns"
	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// Why tells what would happen to a flow to host, which is a name or an address
// with an optional port (443 if there is none). It asks nobody: no name is
// resolved and nothing is dialled. Where rules name programs, it says of each of
// those that would go another way.
func (e *Engine) Why(host string) (api.Why, error) {
	t, err := parseTarget(host)
	if err != nil {
		return api.Why{}, &api.Error{Code: api.ErrBadRequest, Message: err.Error(),
			Hint: "give a host name or an address, with a port if it matters: example.com:22"}
	}
	way := e.flows.Explain(flow.TCP, t, "")
	usual := e.wayOf(t, "")
	w := api.Why{
		Schema: api.Schema, Host: way.Target.Host(), Verdict: usual.Verdict, Rule: usual.Rule,
		Upstream: usual.Upstream, UDP: usual.UDP, LastError: e.flows.LastError(way.Target.Host()),
	}
	switch {
	case way.Upstream == nil:
		w.DNS = "not resolved: it is blocked"
	case way.Target.Name == "":
		w.DNS = "an address: nothing to resolve"
	case way.Upstream == e.ups.direct:
		w.DNS = "by this machine's own resolvers, when the flow is dialled"
	default:
		w.DNS = "by the upstream, which is sent the name"
	}
	for _, r := range e.opt.Config.Rules {
		for _, p := range r.Process {
			other := e.wayOf(t, p)
			if other.Program = p; other.Rule != usual.Rule || other.UDP != usual.UDP {
				w.Programs = append(w.Programs, other)
			}
		}
	}
	if e.held.Load() {
		s, now := e.snap.Load(), "no traffic reaches the service now: "
		if e.blocking(s) {
			now = "all traffic is held now: "
		}
		w.Rule += "; but " + now + heldBy(s)
	}
	return w, nil
}

// wayOf is where a program's flows to t would go; "" is one that no rule names.
func (e *Engine) wayOf(t flow.Target, program string) api.WhyProgram {
	tcp, udp := e.flows.Explain(flow.TCP, t, program), e.flows.Explain(flow.UDP, t, program)
	w := api.WhyProgram{Verdict: tcp.Verdict.String(), Rule: tcp.Verdict.Rule}
	if tcp.Upstream != nil {
		w.Upstream = tcp.Upstream.Spec().Name
	}
	switch {
	case udp.Upstream == nil:
		w.UDP = "blocked"
	case udp.NoUDP:
		w.UDP = udp.Upstream.Spec().Name + " carries no UDP: QUIC is refused so that apps use TCP, the rest is blocked"
	case udp.Verdict.Kind == flow.Direct:
		w.UDP = "direct"
	default:
		w.UDP = "through " + udp.Upstream.Spec().Name
	}
	if udp.Verdict.Rule != tcp.Verdict.Rule {
		w.UDP += " (" + udp.Verdict.Rule + ")"
	}
	return w
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

// parseTarget reads host, host:port, an address, or [address]:port.
func parseTarget(s string) (flow.Target, error) {
	name, addr, port, err := proxy.ParseHostPort(strings.TrimSpace(s), 443)
	return flow.Target{Name: name, Addr: addr, Port: port}, err
}
