package upstream

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
)

// TestGuardOfNames: that an app may have one port of a name does not give it
// another, however it sends.
func TestGuardOfNames(t *testing.T) {
	server := udpEcho(t)
	ctx := WithGuard(t.Context(), func(to netip.AddrPort) error {
		if to == server {
			return nil
		}
		return errors.New("another's")
	})
	o := Options{Resolve: func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{server.Addr()}, nil }}
	conn, err := open(t, "direct://", nil, o).Packets().DialPackets(ctx, flow.Target{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mine, other := NameAddr{Name: "here.test", Port: server.Port()}, NameAddr{Name: "here.test", Port: server.Port() ^ 1}
	if _, err := conn.WriteTo([]byte("x"), mine); err != nil {
		t.Error(err)
	}
	if _, err := conn.WriteTo([]byte("x"), other); err == nil {
		t.Error("a datagram has gone to another's port")
	}
	s, ok := conn.(flow.BatchSender)
	if !ok {
		return
	}
	for _, to := range []NameAddr{mine, other} {
		ms := []flow.Datagram{{Data: []byte("x"), Name: to.Name, Addr: netip.AddrPortFrom(netip.Addr{}, to.Port)}}
		if done, lost, err := s.Send(ms); done-lost != 1 == (to == mine) {
			t.Errorf("%v: %d done, %d lost, %v", to, done, lost, err)
		}
	}
}
