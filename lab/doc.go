// Package lab is a small internet in network namespaces, for end-to-end tests,
// the demo and benchmarks:
//
//	 client                router                        inet
//	┌──────────────┐     ┌─────────────────┐     ┌─────────────────────────────────┐
//	│ apps, engine │ veth│ lan0       wan0 │ veth│ eth0   upstreams 203.0.113.0/24 │
//	│ 10.77.0.2    ├─────┤ 10.77.0.1       ├─────┤                 2001:db8:f::a:* │
//	│ fd77::2      │     │ fd77::1         │ or  │        origins  198.51.100.0/24 │
//	└──────────────┘     └─────────────────┘wanem│                 2001:db8:f::b:* │
//	  lan (10.77.0.66) ────┘ if asked for        └─────────────────────────────────┘
//
// New builds it and starts the origins (lab/origin); everything else is started
// by methods of Lab: upstream proxies (lab/proxy, or Debian's own: StartPeer),
// a capture on the router (lab/capture), impairment (lab/wanem), snapshots of a
// namespace's network (lab/snapshot). Programs run by Command in a namespace
// with an /etc and a /run of their own.
//
// It needs root and Linux, and touches nothing of the machine's own network.
// Each lab has names of its own, so many run at once; what a killed process
// left behind is swept by the next New. Never imported by app, engine,
// platform or relay.
package lab
