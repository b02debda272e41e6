package windows

import (
	"context"
	"errors"
	"slices"

	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// adapter does operations on the TUN's adapter.
type adapter interface {
	add(operation) error
	// remove takes back what add did. What is gone already is no error.
	remove(operation) error
}

// machine takes the adapter from have to want. It is not safe for concurrent
// use.
type machine struct {
	have []operation
}

// set makes the adapter have want, or leaves it as it was.
func (m *machine) set(ctx context.Context, a adapter, want []operation) error {
	before := m.have
	err := m.move(ctx, a, want)
	if err == nil {
		return nil
	}
	// Going back must not be cut short by the caller's deadline.
	return errors.Join(err, m.move(context.WithoutCancel(ctx), a, before))
}

// move does one step after the other and keeps have true after each.
func (m *machine) move(ctx context.Context, a adapter, want []operation) error {
	remove, add := physical.Diff(m.have, want, operation.equal)
	for _, o := range remove {
		if err := errors.Join(ctx.Err(), a.remove(o)); err != nil {
			return err
		}
		m.have = slices.DeleteFunc(slices.Clone(m.have), o.equal)
	}
	for _, o := range add {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.add(o); err != nil {
			return err
		}
		m.have = append(slices.Clone(m.have), o)
	}
	return nil
}
