package darwin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

// machine takes objects from have to want with a runner of commands, keeping
// the journal ahead of every change. It is not safe for concurrent use.
type machine struct {
	run     func(context.Context, command) error
	exists  func(tun string) bool // is there such an interface?
	journal journal
	log     *slog.Logger
	have    []object
}

// recover removes what a crashed run left: only what outlives a process, for
// the rest went with its utun (and that name may be another VPN's by now). A
// journal that cannot be read counts as "the resolver's key may be there".
func (m *machine) recover(ctx context.Context) error {
	left, err := m.journal.load()
	if err != nil {
		m.log.Warn("journal is unreadable; removing our resolver key to be sure", "err", err)
		left = []object{{DNS: []netip.Addr{netip.IPv4Unspecified()}}} // which servers does not matter
	}
	for _, o := range slices.Backward(left) {
		if !o.outlives() {
			continue
		}
		if err := m.run(ctx, o.remove()); err != nil {
			return err
		}
	}
	return m.journal.save(nil)
}

// set makes the machine have want, or leaves it as it was.
func (m *machine) set(ctx context.Context, want []object) error {
	before := m.have
	err := m.move(ctx, want)
	if err == nil {
		return nil
	}
	// Going back must not be cut short by the caller's deadline.
	if back := m.move(context.WithoutCancel(ctx), before); back != nil {
		return errors.Join(err, back)
	}
	return err
}

// move does one step after the other and keeps have true after each.
func (m *machine) move(ctx context.Context, want []object) error {
	remove, add := physical.Diff(m.have, want, object.equal)
	for _, o := range remove {
		// With its utun, a route is gone already.
		if o.outlives() || m.exists(o.TUN) {
			if err := m.run(ctx, o.remove()); err != nil {
				return err
			}
		}
		m.have = slices.DeleteFunc(slices.Clone(m.have), o.equal)
	}
	for _, o := range add {
		if err := m.journal.save(append(slices.Clone(m.have), o)); err != nil {
			return err
		}
		if err := m.run(ctx, o.add()); err != nil {
			// It may have taken effect even so, where ctx ended the tool.
			_ = m.run(context.WithoutCancel(ctx), o.remove())
			return err
		}
		m.have = append(slices.Clone(m.have), o)
	}
	// What is journalled is more than what is there; to undo it twice is
	// harmless, so that a full disk does not keep the machine from being restored.
	if err := m.journal.save(m.have); err != nil {
		m.log.Warn("journal", "err", err)
	}
	return nil
}

// checkOutput finds the failures that the tools report with exit status 0:
// scutil says why on its output, and route says "route: writing to routing
// socket: …".
func checkOutput(c command, out string) error {
	out = strings.TrimSpace(out)
	failed := c.Args[0] == scutilPath && out != "" && !strings.Contains(out, "No such key") ||
		strings.Contains(out, "writing to routing socket")
	if failed {
		return fmt.Errorf("%s: %.200s", c, out)
	}
	return nil
}
