package windows

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	sys "golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/atlanticproxy/atlanticproxy/platform/physical"
)

var (
	_ platform.Host   = (*Host)(nil)
	_ platform.Uplink = (*Host)(nil)
	_ adapter         = luidAdapter(0)
)

var (
	errClosed = errors.New("host is closed")
	errNoTUN  = errors.New("no such adapter of ours")
)

// Host is Windows' platform.Host.
type Host struct {
	log       *slog.Logger
	changes   chan platform.NetChange
	events    chan struct{} // from the callbacks to watch
	callbacks []func() error
	watched   sync.WaitGroup
	stop      chan struct{} // closed by Close
	net       atomic.Pointer[physical.Network]

	mu      sync.Mutex // guards the rest
	tun     string     // the adapter that OpenTUN made last, and its identity
	luid    winipcfg.LUID
	machine machine
	cfg     platform.NetConfig
	uplink  platform.NetChange
	closed  bool
}

// New returns the Host. A crashed run has left nothing: see the package. It
// needs administrator's rights only for OpenTUN and Apply. opt is not used.
func New(log *slog.Logger, opt platform.Options) (platform.Host, error) {
	h := &Host{
		log:     log,
		changes: make(chan platform.NetChange, 1),
		events:  make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	if _, err := h.refresh(); err != nil {
		return nil, err
	}
	if err := h.subscribe(); err != nil {
		h.unsubscribe()
		return nil, err
	}
	h.watched.Go(h.watch)
	return h, nil
}

// adapterGUID is the adapter's identity, always the same, so that Windows
// recognises the network it belongs to and its firewall profile.
func adapterGUID() *sys.GUID {
	return &sys.GUID{Data1: 0x61746c61, Data2: 0x6e74, Data3: 0x4963, Data4: [8]byte{0xa7, 0x1c, 0x61, 0x64, 0x61, 0x70, 0x74, 0x30}}
}

// OpenTUN creates the Wintun adapter. wintun.dll must lie beside the executable.
func (h *Host) OpenTUN(cfg platform.TUNConfig) (tun.Device, error) {
	// The binding panics where the library is missing: look first.
	const searchApplicationDir, searchSystem32 = 0x200, 0x800
	if _, err := sys.LoadLibraryEx("wintun.dll", 0, searchApplicationDir|searchSystem32); err != nil {
		return nil, fmt.Errorf("%w: wintun.dll (from wintun.net) must lie beside atlanticd.exe: %w", platform.ErrNoTUN, err)
	}
	dev, err := tun.CreateTUNWithRequestedGUID(cfg.Name, adapterGUID(), cfg.MTU)
	if errors.Is(err, sys.ERROR_ACCESS_DENIED) {
		return nil, fmt.Errorf("create adapter %q: %w; run as administrator", cfg.Name, platform.ErrPermission)
	}
	if err != nil {
		return nil, fmt.Errorf("create adapter %q: %w", cfg.Name, err)
	}
	native, ok := dev.(*tun.NativeTun)
	if !ok {
		dev.Close()
		return nil, fmt.Errorf("create adapter %q: a %T has no identity", cfg.Name, dev)
	}
	luid := winipcfg.LUID(native.LUID())
	for _, o := range planTUN(cfg) {
		if err := luidAdapter(luid).add(o); err != nil {
			dev.Close()
			return nil, fmt.Errorf("set up adapter %q: %w", cfg.Name, err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tun, h.luid, h.machine = cfg.Name, luid, machine{}
	return dev, nil
}

// Apply makes the machine match cfg. Addresses and MTU are those that OpenTUN
// gave the adapter.
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
	if cfg.TUN != "" {
		if _, err := h.luid.Interface(); err != nil || cfg.TUN != h.tun {
			return fmt.Errorf("adapter %q: %w", cfg.TUN, errNoTUN)
		}
	}
	f := facts{LAN: h.uplink.LAN, DNS: h.uplink.DNS}
	if err := h.machine.set(ctx, luidAdapter(h.luid), plan(cfg, f)); err != nil {
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
	err = errors.Join(err, h.unsubscribe())
	close(h.stop)
	h.watched.Wait()
	close(h.changes)
	return err
}

// Control ties a socket to the interface that its destination is to be reached
// by (IP_UNICAST_IF, IPV6_UNICAST_IF), whatever routes point into the TUN.
// Loopback is left alone.
func (h *Host) Control(network, address string, c syscall.RawConn) error {
	dst, loopback := physical.Destination(address)
	if loopback {
		return nil
	}
	is6 := network[len(network)-1] == '6'
	index := h.net.Load().Via(dst, is6)
	if index == 0 {
		return fmt.Errorf("no physical network for %s %s: %w", network, address, sys.WSAENETUNREACH)
	}
	var inner error
	err := c.Control(func(fd uintptr) {
		const unicastIFOption = 31 // IP_UNICAST_IF and IPV6_UNICAST_IF
		if is6 {
			inner = sys.SetsockoptInt(sys.Handle(fd), sys.IPPROTO_IPV6, unicastIFOption, index)
		} else {
			inner = sys.SetsockoptInt(sys.Handle(fd), sys.IPPROTO_IP, unicastIFOption, unicastIF(index))
		}
	})
	if err := errors.Join(err, inner); err != nil {
		return fmt.Errorf("tie %s %s to interface %d: %w", network, address, index, err)
	}
	return nil
}

// luidAdapter does operations by the IP Helper API.
type luidAdapter winipcfg.LUID

func (a luidAdapter) add(o operation) error {
	luid := winipcfg.LUID(a)
	var err error
	switch o.Verb {
	case setInterface:
		err = a.setInterface(o)
	case addAddress:
		err = luid.AddIPAddress(o.Prefix)
	case addRoute:
		err = luid.AddRoute(o.Prefix, onLink(o), 0)
	case setDNS:
		err = luid.SetDNS(family(o), o.DNS, nil)
	}
	if errors.Is(err, sys.ERROR_OBJECT_ALREADY_EXISTS) {
		return nil // on our own adapter: the same
	}
	return wrap(o, err)
}

func (a luidAdapter) remove(o operation) error {
	luid := winipcfg.LUID(a)
	var err error
	switch o.Verb {
	case addAddress:
		err = luid.DeleteIPAddress(o.Prefix)
	case addRoute:
		err = luid.DeleteRoute(o.Prefix, onLink(o))
	case setDNS:
		err = luid.FlushDNS(family(o))
	}
	if errors.Is(err, sys.ERROR_NOT_FOUND) || errors.Is(err, sys.ERROR_FILE_NOT_FOUND) {
		return nil // it, or the whole adapter, is gone
	}
	return wrap(o, err)
}

// setInterface makes the adapter the preferred one, for its resolver above all,
// and keeps Windows from configuring it by itself.
func (a luidAdapter) setInterface(o operation) error {
	row, err := winipcfg.LUID(a).IPInterface(family(o))
	if err != nil {
		return wrap(o, err)
	}
	row.UseAutomaticMetric, row.Metric = false, 0
	row.NLMTU = uint32(o.MTU)
	row.RouterDiscoveryBehavior = winipcfg.RouterDiscoveryDisabled
	row.DadTransmits = 0
	row.ManagedAddressConfigurationSupported = false
	row.OtherStatefulConfigurationSupported = false
	return row.Set()
}

func wrap(o operation, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	return nil
}

func family(o operation) winipcfg.AddressFamily {
	if o.Six {
		return sys.AF_INET6
	}
	return sys.AF_INET
}

// onLink is the next hop of a route that has none.
func onLink(o operation) netip.Addr {
	if o.Six {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
