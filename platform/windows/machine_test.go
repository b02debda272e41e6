package windows

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// fakeAdapter keeps what was added; the n-th add from now fails (0: none).
type fakeAdapter struct {
	there   []string
	failAt  int
	touched int
	onAdd   func()
}

var errAPI = errors.New("call failed")

func (f *fakeAdapter) add(o operation) error {
	f.touched++
	if f.onAdd != nil {
		f.onAdd()
	}
	if f.failAt--; f.failAt == 0 {
		return errAPI
	}
	f.there = append(f.there, o.String())
	return nil
}

func (f *fakeAdapter) remove(o operation) error {
	f.touched++
	f.there = slices.DeleteFunc(f.there, func(s string) bool { return s == o.String() })
	return nil
}

func TestSetIsAllOrNothing(t *testing.T) {
	want := plan(full(), home())
	for n := 1; n <= len(want); n++ {
		a, m := &fakeAdapter{failAt: n}, machine{}
		if err := m.set(context.Background(), a, want); !errors.Is(err, errAPI) {
			t.Fatalf("step %d: %v", n, err)
		}
		if len(a.there) != 0 {
			t.Errorf("step %d failed and left %v", n, a.there)
		}
		if err := m.set(context.Background(), a, want); err != nil || len(a.there) != len(want) {
			t.Errorf("after a failure at %d: %v, %v", n, err, a.there)
		}
	}
}

func TestSetCancelledHalfWay(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a, m := &fakeAdapter{onAdd: cancel}, machine{}
	if err := m.set(ctx, a, plan(full(), home())); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if len(a.there) != 0 {
		t.Errorf("left %v", a.there)
	}
}

func TestSetIsIdempotent(t *testing.T) {
	a, m := &fakeAdapter{}, machine{}
	for _, cfg := range []platform.NetConfig{full(), full()} {
		if err := m.set(context.Background(), a, plan(cfg, home())); err != nil {
			t.Fatal(err)
		}
	}
	if want := len(plan(full(), home())); a.touched != want {
		t.Errorf("%d calls for the same twice, want %d", a.touched, want)
	}
	narrow := full()
	narrow.Default6, narrow.DNS = false, nil
	if err := m.set(context.Background(), a, plan(narrow, home())); err != nil {
		t.Fatal(err)
	}
	if want := []string{"route 0.0.0.0/1", "route 128.0.0.0/1"}; !slices.Equal(a.there, want) {
		t.Errorf("narrowed to %q, want %q", a.there, want)
	}
	if err := m.set(context.Background(), a, nil); err != nil || len(a.there) != 0 {
		t.Errorf("undone: %v, left %q", err, a.there)
	}
}
