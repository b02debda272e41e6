package darwin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

// fakeMac executes commands on a set of objects, as the tools do.
type fakeMac struct {
	t      *testing.T
	m      *machine
	there  map[string]bool // add command -> in effect
	utun   bool
	failAt int // the n-th command from now fails; 0: none
	known  []object
}

var errTool = errors.New("tool failed")

func newFake(t *testing.T, dir string) *fakeMac {
	f := &fakeMac{t: t, there: map[string]bool{}, utun: true, known: plan(full(), home)}
	f.m = &machine{run: f.run, exists: func(string) bool { return f.utun }, journal: newJournal(dir), log: slog.New(slog.DiscardHandler)}
	return f
}

func (f *fakeMac) run(ctx context.Context, c command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, o := range f.known {
		switch c.String() {
		case o.add().String():
			journalled, err := f.m.journal.load()
			if err != nil || !slices.ContainsFunc(journalled, o.equal) {
				f.t.Errorf("%v is made before it is journalled (%v, %v)", o, journalled, err)
			}
			if f.failAt--; f.failAt == 0 {
				return errTool
			}
			f.there[o.add().String()] = true
		case o.remove().String():
			delete(f.there, o.add().String())
		}
	}
	return nil
}

func TestSetIsAllOrNothing(t *testing.T) {
	steps := len(plan(full(), home))
	for n := 1; n <= steps; n++ {
		f := newFake(t, t.TempDir())
		f.failAt = n
		if err := f.m.set(context.Background(), plan(full(), home)); !errors.Is(err, errTool) {
			t.Fatalf("step %d: %v", n, err)
		}
		if len(f.there) != 0 || len(f.m.have) != 0 {
			t.Errorf("step %d failed and left %v", n, f.there)
		}
		if _, err := os.Stat(f.m.journal.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("step %d failed and left a journal (%v)", n, err)
		}
		if err := f.m.set(context.Background(), plan(full(), home)); err != nil || len(f.there) != steps {
			t.Errorf("after a failure at %d: %v, %d of %d there", n, err, len(f.there), steps)
		}
	}
}

func TestSetUndoesAll(t *testing.T) {
	for _, utun := range []bool{true, false} {
		f := newFake(t, t.TempDir())
		if err := f.m.set(context.Background(), plan(full(), home)); err != nil {
			t.Fatal(err)
		}
		f.utun = utun
		if err := f.m.set(context.Background(), plan(platform.NetConfig{}, home)); err != nil {
			t.Fatal(err)
		}
		left := len(f.there)
		if !utun {
			left -= 4 // the routes went with their utun, without a command
		}
		if left != 0 || len(f.m.have) != 0 {
			t.Errorf("utun there %v: left %v", utun, f.there)
		}
	}
}

// A crash after any command: the next start removes the resolver and touches no
// route, whose utun may be another program's by now.
func TestRecover(t *testing.T) {
	dir := t.TempDir()
	f := newFake(t, dir)
	if err := f.m.set(context.Background(), plan(full(), home)); err != nil {
		t.Fatal(err)
	}
	var ran []string
	next := newFake(t, dir)
	next.m.run = func(_ context.Context, c command) error { ran = append(ran, c.String()); return nil }
	for range 2 { // the second finds nothing to do
		if err := next.m.recover(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{object{DNS: full().DNS}.remove().String()}; !slices.Equal(ran, want) {
		t.Errorf("recovery ran %q, want %q", ran, want)
	}
}

func TestRecoverFromGarbage(t *testing.T) {
	f := newFake(t, t.TempDir())
	if err := os.WriteFile(f.m.journal.path, []byte("{not json"), 0o600); err != nil {
		t.Fatal(err)
	}
	var ran []string
	f.m.run = func(_ context.Context, c command) error { ran = append(ran, c.String()); return nil }
	if err := f.m.recover(context.Background()); err != nil || len(ran) != 1 {
		t.Errorf("ran %q, %v; want the key removed", ran, err)
	}
	if left, err := f.m.journal.load(); err != nil || left != nil {
		t.Errorf("the garbage is still there: %v, %v", left, err)
	}
}

func TestCheckOutput(t *testing.T) {
	dns, route := object{DNS: full().DNS}, object{Route: addr4.Masked(), TUN: "utun4"}
	for _, tc := range []struct {
		c   command
		out string
		bad bool
	}{
		{dns.add(), "", false},
		{dns.add(), "  Permission denied\n", true},
		{dns.remove(), "  No such key\n", false},
		{route.add(), "add net 198.18.0.0: gateway utun4\n", false},
		{route.add(), "route: writing to routing socket: File exists\n", true},
	} {
		if err := checkOutput(tc.c, tc.out); (err != nil) != tc.bad {
			t.Errorf("%s: %q: %v", fmt.Sprint(tc.c.Args), tc.out, err)
		}
	}
}

// With a state directory that cannot be written any more, nothing new is made,
// and what is there can be undone.
func TestDownWithoutAJournal(t *testing.T) {
	dir := t.TempDir() + "/state"
	f := newFake(t, dir)
	if err := f.m.set(context.Background(), plan(full(), home)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // nothing can be below it
		t.Fatal(err)
	}
	if err := f.m.set(context.Background(), nil); err != nil || len(f.there) != 0 {
		t.Errorf("down: %v, %d left", err, len(f.there))
	}
	if err := f.m.set(context.Background(), plan(full(), home)); err == nil || len(f.there) != 0 {
		t.Errorf("up: %v, %d there; nothing may be made that is not journalled", err, len(f.there))
	}
}
