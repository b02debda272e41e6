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
	_ platform.Warner    = (*Host)(nil)
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

	lackMu sync.Mutex // apart from mu, so that Warnings never waits for an Apply
	lacks  []string   // guarded by lackMu: what works less well than it could

	mu      sync.Mutex
	journal *journal           // guarded by mu; nil without privileges
	cfg     platform.NetConfig // guarded by mu: what is in force
	uplink  platform.NetChange // guarded by mu: as last looked at
	tuns    []*device          // guarded by mu
	late    error              // guarded by mu: what could not be undone the last time, and will be later
	closed  bool               // guarded by mu
}

// system is where the host finds what a test replaces.
type system struct {
	resolvConf   string   // "/etc/resolv.conf"
	resolvedConf string   // systemd-resolved's list of the real servers
	resolvconf   []string // where a resolvconf program may be
	bus          string   // D-Bus address; "" is the system bus
	hostname     func() (string, error)
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
		hostname:     os.Hostname,
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
	if err := errors.Join(ownDir(dir), noOtherRuns()); err != nil {
		h.unlock()
		return err
	}
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
	if err := errors.Join(h.late, h.freeStray()); err != nil {
		h.log.Warn("an earlier run cannot be undone completely", "error", err)
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
	if err := noOtherRuns(); err != nil {
		return err
	}
	j, err := openJournal(opts.StateDir)
	if err != nil {
		log.Warn("the journal is damaged; undoing what can be read", "error", err)
	}
	h.journal = j
	var left []entry // kept: whoever tries again still has to know of it
	var errs []error
	for _, e := range slices.Backward(slices.Clone(j.pending)) {
		if err := h.undo(*e.Op); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", e.Op, err))
			left = append(left, e)
		}
	}
	slices.Reverse(left)
	errs = append(errs, h.sweep(), j.keep(left), h.freeStray())
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

// ownDir refuses a directory in which others could put another file: what is
// kept there decides where the machine's traffic goes.
func ownDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at the state directory: %w", err)
	}
	switch {
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("the state directory %s belongs to user %d, who could change what is in it (hint: chown root %s, or choose another with --state)", dir, st.Uid, dir)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("others may write in the state directory %s (hint: chmod go-w %s)", dir, dir)
	}
	return nil
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
	cfg.DNS, cfg.RedirectExcept = slices.Clone(cfg.DNS), slices.Clone(cfg.RedirectExcept)
	h.forgetLacks()
	if err := h.applyLocked(ctx, cfg); err != nil {
		h.forgetLacks()
		return err
	}
	h.cfg = cfg
	h.routes.forget()
	if cfg.TUN == "" {
		return h.late // the monitor tries again, but what is left now is to be told now
	}
	return nil
}

func (h *Host) applyLocked(ctx context.Context, cfg platform.NetConfig) error {
	if cfg.TUN == "" {
		return h.reconcile(ctx, nil)
	}
	if err := configureTUN(cfg.TUN, cfg.MTU, cfg.Addr4, cfg.Addr6); err != nil {
		return err
	}
	if err := h.mend(); err != nil { // a device made anew has not the routes of the one before
		return err
	}
	err := h.follow(ctx, cfg)
	if errors.Is(err, errNFT) { // a kernel without ct or fib expressions
		h.log.Warn("nftables does not take our table", "error", err)
		h.system.noNFT = true
		err = h.follow(ctx, cfg)
	}
	return err
}

// follow makes the machine match cfg and the facts of now.
func (h *Host) follow(ctx context.Context, cfg platform.NetConfig) error {
	f, err := h.gather(cfg)
	if err != nil {
		return err
	}
	return h.reconcile(ctx, plan(cfg, f))
}

// lack notes, once, what works less well than it could.
func (h *Host) lack(what string) {
	h.lackMu.Lock()
	defer h.lackMu.Unlock()
	if !slices.Contains(h.lacks, what) {
		h.lacks = append(h.lacks, what)
	}
}

// Warnings implements platform.Warner.
func (h *Host) Warnings() []string {
	h.lackMu.Lock()
	defer h.lackMu.Unlock()
	return slices.Clone(h.lacks)
}

func (h *Host) forgetLacks() {
	h.lackMu.Lock()
	defer h.lackMu.Unlock()
	h.lacks = nil
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
		errs = append(errs, h.undoAll(), h.late)
		h.journal.close()
	}
	for _, d := range h.tuns {
		errs = append(errs, d.Close())
	}
	h.tuns = nil
	h.unlock()
	return errors.Join(errs...)
}
