package linux

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// reconcile makes want the list of objects in force: it undoes what is not
// wanted, newest first, and makes what is missing, in order. If a change fails
// it goes back to where it was. What can only be undone later stays in the
// journal.
func (h *Host) reconcile(ctx context.Context, want []op) (err error) {
	wanted := make(map[string]bool, len(want))
	for _, o := range want {
		wanted[o.String()] = true
	}
	have := make(map[string]bool)
	var drop []entry
	for _, e := range h.journal.pending {
		if text := e.Op.String(); wanted[text] && !have[text] {
			have[text] = true
		} else {
			drop = append(drop, e)
		}
	}
	var missing []op
	for _, o := range want {
		if !have[o.String()] {
			missing = append(missing, o)
		}
	}
	var dropped []op
	var added []entry
	h.late = nil
	defer func() {
		if err != nil {
			h.rollBack(dropped, added)
		}
	}()
	for _, e := range slices.Backward(drop) {
		if err := h.unmake(e); h.putOff(e, err) {
			continue
		} else if err != nil {
			return err
		}
		dropped = append(dropped, *e.Op)
	}
	added, err = h.record(missing)
	if err != nil {
		return err
	}
	for _, e := range added {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.make(e); err != nil {
			return err
		}
	}
	return nil
}

// rollBack undoes a reconcile that failed half way. To undo what was recorded
// and not made yet is harmless.
func (h *Host) rollBack(dropped []op, added []entry) {
	for _, e := range slices.Backward(added) {
		if err := h.unmake(e); err != nil {
			h.log.Error("cannot roll back", "error", err)
		}
	}
	again, err := h.record(slices.Collect(backward(dropped)))
	for _, e := range again {
		err = errors.Join(err, h.make(e))
	}
	if err != nil {
		h.log.Error("cannot roll back", "error", err)
	}
}

func backward[T any](s []T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, v := range slices.Backward(s) {
			if !yield(v) {
				return
			}
		}
	}
}

// record journals ops that are about to be made: one write and one sync for all
// of them (20 syncs took 60 ms on a busy disk, November 2026).
func (h *Host) record(ops []op) ([]entry, error) {
	if len(ops) == 0 {
		return nil, nil
	}
	prepared := make([]op, len(ops))
	for i, o := range ops {
		var err error
		if prepared[i], err = h.prepare(o); err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
	}
	h.fault()
	entries, err := h.journal.add(prepared...)
	h.fault()
	return entries, err
}

// make makes what is recorded.
func (h *Host) make(e entry) error {
	err := h.do(*e.Op)
	h.fault()
	if err != nil {
		return fmt.Errorf("%s: %w", e.Op, err)
	}
	h.log.Debug("made", "change", e.Op.String())
	return nil
}

func (h *Host) unmake(e entry) error {
	h.fault()
	if err := h.undo(*e.Op); err != nil {
		return fmt.Errorf("undo %s: %w", e.Op, err)
	}
	h.fault()
	if err := h.journal.undone(e.Seq); err != nil { // a full disk must not keep the machine from being restored
		h.log.Warn("cannot note in the journal that a change was undone", "change", e.Op.String(), "error", err)
	}
	h.fault()
	h.log.Debug("undid", "change", e.Op.String())
	return nil
}

// putOff reports whether err says that e can only be undone later; it then
// stays in the journal.
func (h *Host) putOff(e entry, err error) bool {
	if !errors.Is(err, errLater) {
		return false
	}
	h.log.Warn("a change cannot be undone now and will be later", "change", e.Op.String(), "error", err)
	h.late = errors.Join(h.late, err)
	return true
}

// undoAll undoes everything in force; it goes on after an error. What can only
// be undone later stays in the journal, and is in h.late.
func (h *Host) undoAll() error {
	h.late = nil
	var errs []error
	for _, e := range slices.Backward(slices.Clone(h.journal.pending)) {
		if err := h.unmake(e); !h.putOff(e, err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (h *Host) fault() {
	if h.system.fault != nil {
		h.system.fault()
	}
}

// prepare completes o with what has to be remembered to undo it.
func (h *Host) prepare(o op) (op, error) {
	switch o.Kind {
	case opSysctl:
		was, err := readSysctl(o.Key)
		if err != nil {
			return o, err
		}
		if was != o.Value {
			o.Was = was
		}
	case opDNS:
		return h.prepareDNS(o)
	}
	return o, nil
}

// do makes o. It succeeds if o is there already.
func (h *Host) do(o op) error {
	switch o.Kind {
	case opRule:
		return addRule(o)
	case opRoute:
		return addRoute(o)
	case opNFT:
		return h.addNFT(o)
	case opRedirect:
		return addRedirect(o)
	case opGate:
		return addGate(o)
	case opLinkDNS:
		return h.addLinkDNS(o)
	case opSysctl:
		return writeSysctl(o.Key, o.Value)
	case opDNS:
		return h.setDNS(o)
	}
	return fmt.Errorf("unknown kind of change %q", o.Kind)
}

// undo removes o. It succeeds if o is gone already, and leaves alone what
// somebody else has changed since.
func (h *Host) undo(o op) error {
	switch o.Kind {
	case opRule:
		return deleteRule(o)
	case opRoute:
		return deleteRoute(o)
	case opNFT:
		return deleteNFT()
	case opRedirect:
		return emptyChain(redirectChain)
	case opGate:
		return emptyChain(gateChain)
	case opLinkDNS:
		return errors.Join(emptyChain(linkDNSChain), emptyChain(linkDNSInChain))
	case opSysctl:
		return restoreSysctl(o)
	case opDNS:
		return h.restoreDNS(o)
	}
	return fmt.Errorf("unknown kind of change %q", o.Kind)
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", key))
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(key, value string) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys", key), os.O_WRONLY, 0)
	if errors.Is(err, unix.EROFS) { // the usual thing in a container
		return fmt.Errorf("write sysctl: %w (in a container, start it with --sysctl %s=%s)", err, strings.ReplaceAll(key, "/", "."), value)
	}
	if err != nil {
		return fmt.Errorf("write sysctl: %w", err)
	}
	_, err = f.WriteString(value)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write sysctl %s: %w", key, err)
	}
	return nil
}

// restoreSysctl writes back what was there, unless somebody has set another
// value since or the interface is gone.
func restoreSysctl(o op) error {
	if o.Was == "" {
		return nil
	}
	now, err := readSysctl(o.Key)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil || now != o.Value {
		return err
	}
	return writeSysctl(o.Key, o.Was)
}
