package engine

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/route"
	"github.com/atlanticproxy/atlanticproxy/platform"
)

// From configuration to what the parts are made of.

func udpPolicy(s string) route.UDPPolicy {
	switch s {
	case "block":
		return route.UDPBlock
	case "direct":
		return route.UDPDirect
	}
	return route.UDPAuto
}

// processOf finds the app of a flow where the Host can tell.
func processOf(h platform.Host) func(network string, src, dst netip.AddrPort) string {
	if p, ok := h.(platform.Processes); ok {
		return p.Process
	}
	return nil
}

// ownerOf finds the user of a socket where the Host can tell.
func ownerOf(h platform.Host) func(network string, local, remote netip.AddrPort) (uint32, bool) {
	if o, ok := h.(platform.Owners); ok {
		return o.Owner
	}
	return nil
}

// uplinkOf is the physical network as the Host knows it before any change.
func uplinkOf(h platform.Host) platform.NetChange {
	if u, ok := h.(platform.Uplink); ok {
		return u.Uplink()
	}
	return platform.NetChange{Up: true}
}

// jitter spreads d by a tenth each way, so that many machines do not knock at
// one proxy together.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d)/5+1))
}
