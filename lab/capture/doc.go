// Package capture is the leak oracle: it sees every frame that the client sends
// to the router, and tells which of them are neither link upkeep nor addressed
// to the upstream.
//
//	client ── veth ──►│ AF_PACKET on the router's end ─► Parse ─► table of (what, from, to)
//	                  │                                       └─► pcap file, if asked for
//	                                    Leaks(allowed…) ◄── table
//
// The kernel counts what a capture misses: a capture with drops proves nothing,
// so Leaks fails then. Linux only, but for the parser. Beside lab/netns a leaf.
package capture
