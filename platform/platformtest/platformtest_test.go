package platformtest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// The fake itself must pass the suite, or tests of the engine prove nothing.
func TestHostConforms(t *testing.T) {
	var last *Host
	Run(t, func() platform.Host { last = New(); return last }, func() string {
		if last == nil {
			return fmt.Sprint(platform.NetConfig{})
		}
		return fmt.Sprint(last.Current())
	})
}

func TestHostRecordsAndFails(t *testing.T) {
	h := New()
	ctx := context.Background()
	boom := errors.New("boom")
	h.FailApply(nil, boom)
	if err := h.Apply(ctx, platform.NetConfig{TUN: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(ctx, platform.NetConfig{TUN: "b"}); !errors.Is(err, boom) {
		t.Fatalf("err = %v, want boom", err)
	}
	if got := h.Applied(); len(got) != 1 || h.Current().TUN != "a" {
		t.Fatalf("applied %v, current %v: a failed Apply was recorded", got, h.Current())
	}
	h.FailOpenTUN(platform.ErrNoTUN)
	if _, err := h.OpenTUN(platform.TUNConfig{}); !errors.Is(err, platform.ErrNoTUN) {
		t.Fatalf("err = %v, want ErrNoTUN", err)
	}
	h.FailOpenTUN(nil)
	dev, err := h.OpenTUN(platform.TUNConfig{Name: "x"})
	if err != nil || h.OpenTUNs() != 1 || h.TUN() == nil {
		t.Fatalf("open: %v, %d open", err, h.OpenTUNs())
	}
	go func() { h.TUN().Outbound <- []byte{1, 2, 3} }()
	buf, sizes := make([]byte, 10), make([]int, 1)
	if n, err := dev.Read([][]byte{buf}, sizes, 4); n != 1 || err != nil || sizes[0] != 3 || buf[4] != 1 {
		t.Fatalf("read %d packets of %v: %v", n, sizes, err)
	}
	if err := h.Close(); err != nil || h.OpenTUNs() != 0 {
		t.Fatalf("close: %v, %d open", err, h.OpenTUNs())
	}
}

func TestChangeKeepsTheNewest(t *testing.T) {
	h := New()
	for i := range 40 { // more than the channel holds
		h.Change(platform.NetChange{Interface: fmt.Sprint(i)})
	}
	h.Close()
	var last string
	for c := range h.Changes() {
		last = c.Interface
	}
	if last != "39" || h.Uplink().Interface != "39" {
		t.Fatalf("last change %q, uplink %q; want 39", last, h.Uplink().Interface)
	}
	h.Change(platform.NetChange{}) // after Close: no panic
}
