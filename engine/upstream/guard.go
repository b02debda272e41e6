package upstream

import (
	"context"
	"net/netip"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// Guard says whether a flow may have an address that a name turned out to have:
// nil, or why not.
type Guard func(netip.AddrPort) error

type guardKey struct{}

// WithGuard has direct dialling ask g about the addresses of names.
func WithGuard(ctx context.Context, g Guard) context.Context {
	return context.WithValue(ctx, guardKey{}, g)
}

func guardOf(ctx context.Context) Guard {
	g, _ := ctx.Value(guardKey{}).(Guard)
	return g
}

// admit leaves the addresses that g does not refuse; an error if none is left.
func (g Guard) admit(addrs []netip.Addr, port uint16) ([]netip.Addr, error) {
	if g == nil {
		return addrs, nil
	}
	var refused error
	kept := addrs[:0]
	for _, a := range addrs {
		if err := g(netip.AddrPortFrom(a, port)); err != nil {
			refused = err
			continue
		}
		kept = append(kept, a)
	}
	if len(kept) == 0 && refused != nil {
		return nil, targetFault(flow.Forbidden, refused)
	}
	return kept, nil
}
