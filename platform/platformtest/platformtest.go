// Package platformtest holds a recording fake of platform.Host, for tests of
// the engine, and the conformance suite that every real Host must pass.
//
//	engine test ──► platformtest.Host ──► TUN() ──► tuntest.ChannelTUN
//	                      │  ▲
//	        Applied, Opened  FailApply, FailOpenTUN, Change
//
//	platform/linux test ──► platformtest.Run(t, newHost, snapshot)
//
// Only tests import it.
package platformtest

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

var (
	_ platform.Host      = (*Host)(nil)
	_ platform.Uplink    = (*Host)(nil)
	_ platform.Processes = (*Host)(nil)
	_ platform.Captor    = (*Host)(nil)
)

// errClosed is what a closed Host answers.
var errClosed = errors.New("host is closed")

// Host is a platform.Host that changes nothing and remembers what it was asked
// to do. Its methods may be called from any goroutine.
type Host struct {
	changes chan platform.NetChange

	mu        sync.Mutex
	opened    []platform.TUNConfig
	applied   []platform.NetConfig
	current   platform.NetConfig
	tuns      []*device
	uplink    platform.NetChange
	controls  []string
	processes map[netip.AddrPort]string
	failOpen  error
	failApply []error
	failCtl   error
	closed    bool
}

// New returns a Host on a machine with one interface, "eth0", that has IPv4
// and IPv6.
func New() *Host {
	return &Host{
		changes:   make(chan platform.NetChange, 16),
		processes: make(map[netip.AddrPort]string),
		uplink: platform.NetChange{
			Up: true, Interface: "eth0", Has4: true, Has6: true,
			DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")},
			LAN: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		},
	}
}

// OpenTUN records cfg and returns a device in memory; the test has the other
// end of it as TUN.
func (h *Host) OpenTUN(cfg platform.TUNConfig) (tun.Device, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed
	}
	if h.failOpen != nil {
		return nil, h.failOpen
	}
	h.opened = append(h.opened, cfg)
	d := newDevice(cfg)
	h.tuns = append(h.tuns, d)
	return d, nil
}

// Apply records cfg, unless FailApply has an error waiting.
func (h *Host) Apply(ctx context.Context, cfg platform.NetConfig) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if h.closed {
		return errClosed
	}
	if len(h.failApply) > 0 {
		err := h.failApply[0]
		h.failApply = h.failApply[1:]
		if err != nil {
			return err
		}
	}
	cfg.DNS, cfg.RedirectExcept = slices.Clone(cfg.DNS), slices.Clone(cfg.RedirectExcept)
	h.applied = append(h.applied, cfg)
	h.current = cfg
	return nil
}

// Changes delivers what the test passes to Change.
func (h *Host) Changes() <-chan platform.NetChange { return h.changes }

// Control records the network and address, and leaves the socket alone.
func (h *Host) Control(network, address string, _ syscall.RawConn) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.controls = append(h.controls, network+" "+address)
	return h.failCtl
}

// Close restores the (imagined) machine and closes Changes and the devices.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	h.current = platform.NetConfig{}
	close(h.changes)
	for _, d := range h.tuns {
		_ = d.Close()
	}
	return nil
}

// Uplink is what the last Change said, or New's machine.
func (h *Host) Uplink() platform.NetChange {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.uplink
}

// Process is what SetProcess said about src.
func (h *Host) Process(_ string, src, _ netip.AddrPort) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.processes[src]
}

// Captures is nil if a TUN is in force whose device is open.
func (h *Host) Captures() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current.TUN == "" || len(h.tuns) == 0 || h.tuns[len(h.tuns)-1].isClosed() {
		return errors.New("packets leave by eth0")
	}
	return nil
}

// Applied returns every NetConfig that Apply accepted, oldest first.
func (h *Host) Applied() []platform.NetConfig {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.applied)
}

// Current is the NetConfig in force: zero before the first Apply and after
// Close.
func (h *Host) Current() platform.NetConfig {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// Opened returns every TUNConfig that OpenTUN accepted, oldest first.
func (h *Host) Opened() []platform.TUNConfig {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.opened)
}

// Controls returns "network address" of every call of Control, oldest first.
func (h *Host) Controls() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.controls)
}

// TUN is the test's end of the newest device: what is sent on its Outbound the
// engine reads as a packet of an app, and what the engine writes arrives on
// Inbound. It is nil before OpenTUN.
func (h *Host) TUN() *tuntest.ChannelTUN {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.tuns) == 0 {
		return nil
	}
	return h.tuns[len(h.tuns)-1].channel
}

// BreakTUN makes the newest device die under its user, as when somebody
// deletes the interface.
func (h *Host) BreakTUN() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.tuns[len(h.tuns)-1].Close()
}

// Closed reports whether Close was called.
func (h *Host) Closed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// OpenTUNs is how many devices are open now.
func (h *Host) OpenTUNs() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, d := range h.tuns {
		if !d.isClosed() {
			n++
		}
	}
	return n
}

// FailOpenTUN makes every OpenTUN from now on return err; nil ends that.
func (h *Host) FailOpenTUN(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failOpen = err
}

// FailApply makes the next calls of Apply return errs, one each; a nil among
// them lets that call succeed.
func (h *Host) FailApply(errs ...error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failApply = append(h.failApply, errs...)
}

// FailControl makes every Control from now on return err; nil ends that.
func (h *Host) FailControl(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failCtl = err
}

// SetProcess makes Process answer path for the local socket src.
func (h *Host) SetProcess(src netip.AddrPort, path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.processes[src] = path
}

// Change makes c the physical network and delivers it on Changes. Where the
// engine reads too slowly the oldest value is lost, as bursts are merged. After
// Close it does nothing.
func (h *Host) Change(c platform.NetChange) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.uplink = c
	for {
		select {
		case h.changes <- c:
			return
		default:
		}
		select {
		case <-h.changes:
		default:
		}
	}
}

// device is a tuntest.ChannelTUN with the name and MTU that were asked for,
// and a Close that may be called twice.
type device struct {
	tun.Device
	channel *tuntest.ChannelTUN
	cfg     platform.TUNConfig
	once    sync.Once
	done    chan struct{}
}

func newDevice(cfg platform.TUNConfig) *device {
	c := tuntest.NewChannelTUN()
	return &device{Device: c.TUN(), channel: c, cfg: cfg, done: make(chan struct{})}
}

func (d *device) Name() (string, error) { return d.cfg.Name, nil }
func (d *device) MTU() (int, error)     { return d.cfg.MTU, nil }
func (d *device) File() *os.File        { return nil }

func (d *device) Close() error {
	d.once.Do(func() {
		close(d.done)
		_ = d.Device.Close()
	})
	return nil
}

func (d *device) isClosed() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}
