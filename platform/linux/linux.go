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
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

var (
	_ platform.Host      = (*Host)(nil)
	_ platform.Uplink    = (*Host)(nil)
	_ platform.Processes = (*Host)(nil)
	_ platform.Owners    = (*Host)(nil)
	_ platform.Warner    = (*Host)(nil)

	_ platform.LinkDNSTaker = (*Host)(nil)
	_ platform.Captor       = (*Host)(nil)
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
	owners     diagSocket

	changes chan platform.NetChange // closed by the monitor when it ends
	stop    context.CancelFunc      // ends the monitor
	watched sync.WaitGroup          // the monitor
	repairs *rate.Limiter

	captor atomic.Pointer[string] // the TUN that traffic is to enter; nil if there is none

	lackMu sync.Mutex // apart from mu, so that Warnings never waits for an Apply
	lacks  []string   // guarded by lackMu: what works less well than it could, since the last Apply
	found  []string   // guarded by lackMu: the same, as last looked at
	past   []string   // guarded by lackMu: what is to be said of an earlier run, until all is seen to be undone

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
	noARP bool // nor a family arp in it
	// noLinkDNS is set once queries to link-local resolvers could not be taken.
	noLinkDNS bool
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
	if n := len(h.journal.pending); n > 0 {
		h.log.Info("undoing what an earlier run left", "changes", n)
	}
	if err != nil { // neither may the machine stay as it is, nor may the file stand in the way of every start
		h.past = append(h.past, err.Error()+"; what can be found without it was undone")
		err = h.salvage(err)
	} else {
		err = errors.Join(h.undoAll(), h.late, h.sweep(), h.freeStray())
	}
	if err != nil {
		h.past = append(h.past, "an earlier run cannot be undone completely: "+err.Error())
	}
	for _, what := range h.past {
		h.log.Warn("an earlier run", "left", what)
	}
	return nil
}

// salvage undoes all that the journal tells of, though it may be damaged, and
// all that bears our name. A damaged file is put aside, where it can be looked at.
func (h *Host) salvage(damage error) error {
	var errs []error
	var failed []entry
	for _, e := range slices.Backward(h.journal.pending) {
		if err := h.undo(*e.Op); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", e.Op, err))
			failed = append(failed, e)
		}
	}
	errs = append(errs, h.sweep())
	slices.Reverse(failed)                                        // kept: whoever tries again still has to know of it
	if err := h.journal.keep(failed, damage != nil); err != nil { // to undo what is undone already is harmless
		h.log.Warn("the journal still tells of what was undone", "error", err)
	}
	return errors.Join(append(errs, h.freeStray())...)
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
	var damage error
	if h.journal, damage = openJournal(opts.StateDir); damage != nil {
		log.Warn("the journal is damaged; undoing what can be read", "error", damage)
	}
	return errors.Join(h.salvage(damage), h.leftover())
}

// lockState makes the state directory and takes its lock, which ends with the
// process.
func lockState(dir string) (*os.File, error) {
	if dir == "" {
		return nil, errors.New("no state directory is given")
	}
	f, err := openLock(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w (it holds the lock in %s)", platform.ErrRunning, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// openLock opens the file that is locked. A directory on a disk that is full,
// read-only or failing must not keep the machine from being restored: then the
// directory itself is locked, or the one above it that is there.
func openLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		var fd int
		if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		err = fmt.Errorf("open %s: %w", path, err)
	}
	for at := path; at != "/"; at = filepath.Dir(at) {
		if fd, errRead := unix.Open(at, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); errRead == nil {
			return os.NewFile(uintptr(fd), at), nil
		}
	}
	return nil, err
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
		h.captor.Store(nil)
		err := h.leftover()
		if err == nil {
			h.forgetPast()
		}
		return err // the monitor tries again, but what is left now is to be told now
	}
	h.captor.Store(&cfg.TUN)
	return nil
}

func (h *Host) applyLocked(ctx context.Context, cfg platform.NetConfig) error {
	if cfg.TUN == "" {
		return h.reconcile(ctx, nil)
	}
	if err := configureTUN(cfg.TUN, cfg.MTU, cfg.Addr4, cfg.Addr6); err != nil {
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

// follow makes the machine match cfg and the facts of now. What is in force and
// still wanted is mended first: a device made anew has not the routes of the one
// before.
func (h *Host) follow(ctx context.Context, cfg platform.NetConfig) error {
	f, err := h.gather(cfg)
	if err != nil {
		return err
	}
	want := plan(cfg, f)
	if err := h.mend(want); err != nil {
		return err
	}
	err = h.reconcile(ctx, want)
	h.notice(cfg, f)
	return err
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
	return slices.Concat(h.past, h.lacks, h.found)
}

func (h *Host) forgetPast() {
	h.lackMu.Lock()
	defer h.lackMu.Unlock()
	h.past = nil
}

func (h *Host) forgetLacks() {
	h.lackMu.Lock()
	defer h.lackMu.Unlock()
	h.lacks, h.found = nil, nil
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
	h.owners.close()

	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	if h.journal != nil {
		errs = append(errs, h.undoAll(), h.leftover())
		h.journal.close()
	}
	for _, d := range h.tuns {
		errs = append(errs, d.Close())
	}
	h.tuns = nil
	h.unlock()
	return errors.Join(errs...)
}
