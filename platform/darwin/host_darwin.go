package darwin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

var (
	_ platform.Host   = (*Host)(nil)
	_ platform.Uplink = (*Host)(nil)
)

var errClosed = errors.New("host is closed")

// Host is macOS's platform.Host.
type Host struct {
	log     *slog.Logger
	monitor *os.File // the routing socket; closing it ends watch
	changes chan platform.NetChange
	watched sync.WaitGroup
	stop    chan struct{} // closed by Close
	net     atomic.Pointer[physical.Network]

	mu      sync.Mutex // guards the rest
	machine *machine
	cfg     platform.NetConfig
	uplink  platform.NetChange
	closed  bool
}

// New returns the Host, after it has undone what a crashed run left. It needs
// root only for OpenTUN and Apply.
func New(log *slog.Logger, opt platform.Options) (platform.Host, error) {
	h := &Host{
		log:     log,
		changes: make(chan platform.NetChange, 1),
		stop:    make(chan struct{}),
		machine: &machine{run: run, exists: exists, journal: newJournal(opt.StateDir), log: log},
	}
	if err := h.machine.recover(context.Background()); err != nil {
		return nil, fmt.Errorf("undo what the last run left: %w", err)
	}
	f, err := openMonitor()
	if err != nil {
		return nil, err
	}
	h.monitor = f
	if _, err := h.refresh(context.Background()); err != nil {
		f.Close()
		return nil, err
	}
	h.watched.Go(h.watch)
	return h, nil
}

// OpenTUN creates a utun device: the system picks its name.
func (h *Host) OpenTUN(cfg platform.TUNConfig) (tun.Device, error) {
	dev, err := tun.CreateTUN("utun", cfg.MTU)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("create a utun device: %w; run as root", platform.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("create a utun device: %w", err)
	}
	name, err := dev.Name()
	if err == nil {
		for _, c := range planTUN(name, cfg) {
			if err = run(context.Background(), c); err != nil {
				break
			}
		}
	}
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("set up %s: %w", name, err)
	}
	return dev, nil
}

// Apply makes the machine match cfg. Addresses and MTU are those that OpenTUN
// gave the device.
func (h *Host) Apply(ctx context.Context, cfg platform.NetConfig) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	return h.apply(ctx, cfg)
}

func (h *Host) apply(ctx context.Context, cfg platform.NetConfig) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if cfg.TUN != "" && !exists(cfg.TUN) {
		return fmt.Errorf("no interface %q", cfg.TUN)
	}
	if err := h.machine.set(ctx, plan(cfg, facts{LAN: h.net.Load().LAN()})); err != nil {
		return fmt.Errorf("configure the network: %w", err)
	}
	h.cfg = cfg
	return nil
}

// Changes delivers what the physical network has become.
func (h *Host) Changes() <-chan platform.NetChange { return h.changes }

// Uplink returns the physical network as it is now.
func (h *Host) Uplink() platform.NetChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uplink
}

// Close restores the machine and ends Changes.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	err := h.apply(context.Background(), platform.NetConfig{})
	h.closed = true
	h.mu.Unlock()
	close(h.stop)
	h.monitor.Close()
	h.watched.Wait()
	close(h.changes)
	return err
}

// run runs a tool with its output kept for the error. scutil reports a refused
// change on stdout and exits 0.
func run(ctx context.Context, c command) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := output(ctx, c)
	if err != nil {
		return err
	}
	return checkOutput(c, out)
}

func output(ctx context.Context, c command) (string, error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(c.Stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %.200s", c.Args[0], err, out)
	}
	return string(out), nil
}

func exists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}
