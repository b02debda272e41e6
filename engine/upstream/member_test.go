package upstream

import (
	"fmt"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/flow"
	"github.com/atlanticproxy/atlanticproxy/engine/resolve"
)

// TestMembersAreBounded: identities come and go.
func TestMembersAreBounded(t *testing.T) {
	ms := &members{name: "g", byEP: make(map[*resolve.Endpoint]*member), gates: make(map[gatewayKey]*gateway)}
	defer ms.close()
	var held *member
	for i := range 3 * maxMembers {
		e := &resolve.Endpoint{Name: fmt.Sprint(i), Scheme: []string{"http", "socks5"}[i%2], Host: "h.example", Port: 1, Username: fmt.Sprint("u", i), Password: "p"}
		m, err := ms.get(e)
		if err != nil {
			t.Fatal(err)
		}
		if held == nil {
			held = m
			continue
		}
		ms.release(m)
	}
	if n := len(ms.byEP); n > maxMembers || len(ms.gates) != 2 || !held.kept {
		t.Errorf("%d members, %d gateways", n, len(ms.gates))
	}
	ms.release(held)
	if _, err := ms.get(&resolve.Endpoint{Scheme: "gopher"}); err == nil {
		t.Error("an endpoint of no known kind")
	}
}

// TestGatewaysThatDiffer: identities share connections only where their
// settings would make the same ones.
func TestGatewaysThatDiffer(t *testing.T) {
	ms := &members{name: "g", byEP: make(map[*resolve.Endpoint]*member), gates: make(map[gatewayKey]*gateway)}
	defer ms.close()
	_, one := certificate(t, time.Now().Add(time.Hour), "one")
	_, two := certificate(t, time.Now().Add(time.Hour), "two")
	yes, no := true, false
	for i, s := range []Spec{{}, {CA: one}, {CA: two}, {SNI: "x"}, {HTTP2: &yes}, {HTTP2: &no}, {NoEarly: true}} {
		for range 2 {
			if s.CA != nil {
				s.CA = s.CA.Clone() // read from its file again
			}
			m, err := ms.get(&resolve.Endpoint{Scheme: "https", Host: "h.example", Port: 1, Attached: s})
			if err != nil {
				t.Fatal(err)
			}
			ms.release(m)
		}
		if len(ms.gates) != i+1 {
			t.Errorf("after spec %d: %d gateways, want %d", i, len(ms.gates), i+1)
		}
	}
}

// TestGroupWithTwoCAs: one wrong ca does not spoil the other upstream at the
// same address.
func TestGroupWithTwoCAs(t *testing.T) {
	cert, right := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	_, wrong := certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	at := serve(t, overTLS(cert, httpProxy("")))
	first, second := gateAt(at, "https", ""), gateAt(at, "https", "")
	first.Name, first.Attached = "first", Spec{CA: wrong}
	second.Name, second.Attached = "second", Spec{CA: right}
	u, _ := groupOf(t, first, second)
	var tr Trace
	c, err := u.DialStream(WithTrace(within(t, 5*time.Second), &tr), flow.TargetOf(serve(t, echo)), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if tr.Endpoint != "second" {
		t.Errorf("by %q", tr.Endpoint)
	}
}
