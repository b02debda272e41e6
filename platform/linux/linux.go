//go:build linux

package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

var (
	_ platform.Host      = (*Host)(nil)
	_ platform.Uplink    = (*Host)(nil)
	_ platform.Processes = (*Host)(nil)
)

const lockName = "lock"

var (
	errClosed = errors.New("the network host is closed")
	errLater  = errors.New("cannot be undone now")
)

// Host is the network of this machine, or of the network namespace that the
// process is in. Made by New.
type Host struct {
	log        *slog.Logger
	system     system
	privileged bool
	lock       *os.File // holds the flock; nil without privileges
	routes     routeCache
	processes  processCache

	changes chan platform.NetChange // closed by the monitor when it ends
	stop    context.CancelFunc      // ends the monitor
	watched sync.WaitGroup          // the monitor
	repairs *rate.Limiter

	mu      sync.Mutex
	journal *journal           // guarded by mu; nil without privileges
	cfg     platform.NetConfig // guarded by mu: what is in force
	uplink  platform.NetChange // guarded by mu: as last looked at
	tuns    []*device          // guarded by mu
	closed  bool               // guarded by mu
}

// system is where the host finds what a test replaces.
type system struct {
	resolvConf   string   // "/etc/resolv.conf"
	resolvedConf string   // systemd-resolved's list of the real servers
	resolvconf   []string // where a resolvconf program may be
	bus          string   // D-Bus address; "" is the system bus
	// fault, if set, is called before and after every single change, so that a
	// test can kill the process there.
	fault func()
	noNFT bool // as if the kernel had no nftables
}

func realSystem() system {
	return system{
		resolvConf:   "/etc/resolv.conf",
		resolvedConf: "/run/systemd/resolve/resolv.conf",
		resolvconf:   []string{"/usr/sbin/resolvconf", "/sbin/resolvconf", "/usr/bin/resolvconf"},
	}
}

// New returns the Host of the network namespace that the process runs in. It
// first undoes what a crashed run left, and refuses to be second
// (platform.ErrRunning). It starts one goroutine, which watches the network
// until Close.
//
// Without CAP_NET_ADMIN it succeeds too: OpenTUN and Apply then fail with
// platform.ErrPermission, and Control leaves sockets alone.
func New(log *slog.Logger, opts platform.Options) (platform.Host, error) {
	return newHost(log, opts, realSystem())
}

func newHost(log *slog.Logger, opts platform.Options, sys system) (*Host, error) {
	h := &Host{
		log: log, system: sys, privileged: canAdminister(),
		changes: make(chan platform.NetChange, 1),
		repairs: rate.NewLimiter(2, 10), // Tailscale: 1 per 5 s, burst 10
	}
	if h.privileged {
		if err := h.recover(opts.StateDir); err != nil {
			return nil, err
		}
	}
	h.uplink = h.look()
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	if err := h.startMonitor(ctx); err != nil {
		cancel()
		h.unlock()
		return nil, err
	}
	return h, nil
}

// recover takes the lock and brings the machine back from a crashed run.
func (h *Host) recover(dir string) error {
	lock, err := lockState(dir)
	if err != nil {
		return err
	}
	h.lock = lock
	h.journal, err = openJournal(dir)
	if err == nil {
		if n := len(h.journal.pending); n > 0 {
			h.log.Info("undoing what an earlier run left", "changes", n)
		}
		err = h.undoAll()
	}
	if err == nil {
		err = h.sweep()
	}
	if err != nil {
		h.unlock()
		if errors.Is(err, errJournal) {
			return fmt.Errorf("%w; `atlantic rescue` restores the machine and starts a new one", err)
		}
		return fmt.Errorf("undo an earlier run: %w", err)
	}
	return nil
}

// Rescue restores the machine without a service, whatever state the journal is
// in: it undoes the records that can be read, then removes everything that
// bears our name, then the journal. It fails with platform.ErrRunning while a
// service runs.
func Rescue(log *slog.Logger, opts platform.Options) error {
	return rescue(log, opts, realSystem())
}

func rescue(log *slog.Logger, opts platform.Options, sys system) error {
	if !canAdminister() {
		return fmt.Errorf("rescue the network: %w", platform.ErrPermission)
	}
	lock, err := lockState(opts.StateDir)
	if err != nil {
		return err
	}
	h := &Host{log: log, system: sys, privileged: true, lock: lock}
	defer h.unlock()
	j, err := openJournal(opts.StateDir)
	if err != nil {
		log.Warn("the journal is damaged; undoing what can be read", "error", err)
	}
	h.journal = j
	pending := slices.Clone(j.pending)
	var errs []error
	for _, e := range slices.Backward(pending) {
		if err := h.undo(*e.Op); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", e.Op, err))
		}
	}
	errs = append(errs, h.sweep(), j.clear())
	return errors.Join(errs...)
}

// lockState makes the state directory and takes its lock, which ends with the
// process.
func lockState(dir string) (*os.File, error) {
	if dir == "" {
		return nil, errors.New("no state directory is given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	fd, err := unix.Open(filepath.Join(dir, lockName), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(dir, lockName), err)
	}
	f := os.NewFile(uintptr(fd), lockName)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (it holds the lock in %s)", platform.ErrRunning, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

func (h *Host) unlock() {
	if h.lock != nil {
		_ = h.lock.Close()
		h.lock = nil
	}
}

// canAdminister reports whether the process may change the network.
func canAdminister() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// Apply implements platform.Host.
func (h *Host) Apply(ctx context.Context, cfg platform.NetConfig) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !h.privileged {
		if cfg.TUN == "" {
			return nil
		}
		return fmt.Errorf("change the network: %w (run the service as root)", platform.ErrPermission)
	}
	cfg.DNS = slices.Clone(cfg.DNS)
	if err := h.applyLocked(ctx, cfg); err != nil {
		return err
	}
	h.cfg = cfg
	h.routes.forget()
	return nil
}

func (h *Host) applyLocked(ctx context.Context, cfg platform.NetConfig) error {
	if cfg.TUN == "" {
		return h.reconcile(ctx, nil)
	}
	if err := configureTUN(cfg.TUN, cfg.MTU, cfg.Addr4, cfg.Addr6); err != nil {
		return err
	}
	f, err := h.gather(cfg)
	if err != nil {
		return err
	}
	return h.reconcile(ctx, plan(cfg, f))
}

// reconcile makes want the list of objects in force: it undoes what is not
// wanted, newest first, and makes what is missing, in order. If a change fails
// it goes back to where it was.
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
	var dropped, added []op
	defer func() {
		if err != nil {
			h.rollBack(dropped, added)
		}
	}()
	for _, e := range slices.Backward(drop) {
		if err := h.unmake(e); err != nil {
			return err
		}
		dropped = append(dropped, *e.Op)
	}
	for _, o := range want {
		if have[o.String()] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := h.make(o); err != nil {
			return err
		}
		added = append(added, o)
	}
	return nil
}

// rollBack undoes a reconcile that failed half way.
func (h *Host) rollBack(dropped, added []op) {
	for _, o := range slices.Backward(added) {
		for _, e := range slices.Clone(h.journal.pending) {
			if e.Op.String() == o.String() {
				if err := h.unmake(e); err != nil {
					h.log.Error("cannot roll back", "change", o.String(), "error", err)
				}
			}
		}
	}
	for _, o := range slices.Backward(dropped) {
		if err := h.make(o); err != nil {
			h.log.Error("cannot roll back", "change", o.String(), "error", err)
		}
	}
}

// make journals o and makes it. If making fails it is undone at once.
func (h *Host) make(o op) error {
	o, err := h.prepare(o)
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	h.fault()
	seq, err := h.journal.add(o)
	if err != nil {
		return err
	}
	h.fault()
	err = h.do(o)
	h.fault()
	if err != nil {
		if undoErr := h.unmake(entry{Seq: seq, Op: &o}); undoErr != nil {
			h.log.Error("cannot undo a failed change", "change", o.String(), "error", undoErr)
		}
		return fmt.Errorf("%s: %w", o, err)
	}
	h.log.Debug("made", "change", o.String())
	return nil
}

func (h *Host) unmake(e entry) error {
	h.fault()
	if err := h.undo(*e.Op); err != nil {
		return fmt.Errorf("undo %s: %w", e.Op, err)
	}
	h.fault()
	err := h.journal.undone(e.Seq)
	h.fault()
	h.log.Debug("undid", "change", e.Op.String())
	return err
}

// undoAll undoes everything in force; it goes on after an error. What can only
// be undone later stays in the journal.
func (h *Host) undoAll() error {
	var errs []error
	for _, e := range slices.Backward(slices.Clone(h.journal.pending)) {
		err := h.unmake(e)
		if errors.Is(err, errLater) {
			h.log.Warn("a change will be undone by a later start", "change", e.Op.String(), "error", err)
			continue
		}
		errs = append(errs, err)
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
		return addNFT(o)
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
	case opSysctl:
		return restoreSysctl(o)
	case opDNS:
		return h.restoreDNS(o)
	}
	return fmt.Errorf("unknown kind of change %q", o.Kind)
}

// Changes implements platform.Host.
func (h *Host) Changes() <-chan platform.NetChange { return h.changes }

// Uplink implements platform.Uplink.
func (h *Host) Uplink() platform.NetChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uplink
}

// Close implements platform.Host. It also closes the devices of OpenTUN.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	h.mu.Unlock()

	h.stop()
	h.watched.Wait() // the monitor no longer repairs

	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	if h.journal != nil {
		errs = append(errs, h.undoAll())
		h.journal.close()
	}
	for _, d := range h.tuns {
		errs = append(errs, d.Close())
	}
	h.tuns = nil
	h.unlock()
	return errors.Join(errs...)
}
