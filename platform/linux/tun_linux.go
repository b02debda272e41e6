package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

const (
	tunPath        = "/dev/net/tun"
	maxQueues      = 16
	vnetHdrLen     = 10 // sizeof(struct virtio_net_hdr)
	tunTxQueueLen  = 1000
	tunBatch       = 128 // packets per Read and Write: wireguard's conn.IdealBatchSize
	nameWait       = time.Second
	addrWait       = time.Second
	tunOffloads    = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	addrGenNone    = "1" // net.ipv6.conf.*.addr_gen_mode
	tunQueueFlags  = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	tunNamePattern = "letters, digits, -, _ and, not first, dots, at most 15"
)

// device is the TUN: several raw queues, and on request wireguard's tun.Device
// on the first of them.
//
//	Queues()      kernel path: every queue, raw super-packets
//	Read, Write   userspace path: queue 0 through wireguard's GSO code; the
//	              other queues are detached at the first call
type device struct {
	name   string
	mtu    int
	index  int
	queues []*queue
	events chan tun.Event

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{}

	nativeOnce sync.Once
	native     tun.Device // set by nativeOnce
	nativeErr  error      // set by nativeOnce
}

var (
	_ tun.Device          = (*device)(nil)
	_ platform.MultiQueue = (*device)(nil)
)

// queue is one descriptor of the device. Its file is not in blocking mode: a
// read parks its goroutine instead of holding a thread, which saves two futex
// calls a packet (strace, 2026-11-22: 2.5 a request with blocking reads).
type queue struct {
	file   *os.File
	closed <-chan struct{} // the device's
}

func (q *queue) Read(p []byte) (int, error) {
	n, err := q.file.Read(p)
	return n, q.translate(err)
}

func (q *queue) Write(p []byte) (int, error) {
	n, err := q.file.Write(p)
	return n, q.translate(err)
}

// SyscallConn implements syscall.Conn, for who reads and writes a packet in
// pieces (readv, writev). What fails there is not translated.
func (q *queue) SyscallConn() (syscall.RawConn, error) { return q.file.SyscallConn() }

// translate turns what the kernel says about a deleted device (EBADFD, EFAULT
// or EIO, by the moment) into os.ErrClosed.
func (q *queue) translate(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EBADFD) {
		return os.ErrClosed
	}
	select {
	case <-q.closed:
		return os.ErrClosed
	default:
		return err
	}
}

// OpenTUN implements platform.Host. The device is up and has its addresses. It
// satisfies platform.MultiQueue; MTU, Queues and addresses are as cfg says, with
// at most 16 queues.
func (h *Host) OpenTUN(cfg platform.TUNConfig) (tun.Device, error) {
	if !h.privileged {
		return nil, fmt.Errorf("open tun %q: %w (run the service as root, or with --no-tun)", cfg.Name, platform.ErrPermission)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed
	}
	if err := h.endRedirect(); err != nil {
		return nil, fmt.Errorf("open tun %q: %w", cfg.Name, err)
	}
	d, err := openDevice(cfg)
	if err != nil {
		return nil, fmt.Errorf("open tun %q: %w", cfg.Name, err)
	}
	h.tuns = slices.DeleteFunc(h.tuns, (*device).isClosed)
	h.tuns = append(h.tuns, d)
	return d, nil
}

// endRedirect takes off a redirect that an earlier device has left behind: it is
// made for a device's name and leads to a listener that went with that device,
// so that it would swallow the first connections of the new one (27 November
// 2026: 3 of 3 times after `ip link del`).
func (h *Host) endRedirect() error {
	h.cfg.Redirect = 0
	for _, e := range slices.Clone(h.journal.pending) {
		if e.Op.Kind == opRedirect {
			if err := h.unmake(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func openDevice(cfg platform.TUNConfig) (*device, error) {
	if !validName(cfg.Name) {
		return nil, fmt.Errorf("not a name for an interface (%s)", tunNamePattern)
	}
	if err := waitForName(cfg.Name); err != nil {
		return nil, err
	}
	d := &device{
		name: cfg.Name, mtu: cfg.MTU,
		events: make(chan tun.Event, 4),
		closed: make(chan struct{}),
	}
	n := min(max(cfg.Queues, 1), maxQueues)
	for i := range n {
		f, err := openQueue(cfg.Name, n > 1)
		if err != nil {
			d.closeFiles()
			return nil, err
		}
		d.queues = append(d.queues, &queue{file: f, closed: d.closed})
		if i == 0 {
			link, err := netlink.LinkByName(cfg.Name)
			if err != nil {
				d.closeFiles()
				return nil, err
			}
			d.index = link.Attrs().Index
		}
	}
	if err := configureTUN(cfg.Name, cfg.MTU, cfg.Addr4, cfg.Addr6); err != nil {
		_ = d.Close()
		return nil, err
	}
	d.events <- tun.EventUp
	return d, nil
}

func validName(name string) bool {
	if name == "" || len(name) >= unix.IFNAMSIZ || name[0] == '.' { // a dot alone is a directory in /proc/sys
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
}

// waitForName returns once no interface has that name. A process that was
// killed a moment ago may still be losing its device.
func waitForName(name string) error {
	for deadline := time.Now().Add(nameWait); ; time.Sleep(20 * time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("an interface of that name (%s, not ours) exists: remove it, or choose another [tun] name", link.Type())
		}
	}
}

// openQueue opens one more descriptor of the device, which the first makes.
func openQueue(name string, multi bool) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%w: %s is missing (try `modprobe tun`; in a container, pass it in with --device %s)", platform.ErrNoTUN, tunPath, tunPath)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("%w: open %s", platform.ErrPermission, tunPath)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	if err := attachQueue(fd, name, multi); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("%w: make a tun device", platform.ErrPermission)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

func attachQueue(fd int, name string, multi bool) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(tunQueueFlags)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("attach a queue: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHdrLen); err != nil {
		return fmt.Errorf("set the header size: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffloads); err != nil {
		return fmt.Errorf("switch offloads on: %w", err)
	}
	return nil
}

// configureTUN gives the device its MTU and addresses and sets it up. Nothing
// of it is journalled: it goes with the device.
func configureTUN(name string, mtu int, addrs ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find tun %q: %w", name, err)
	}
	if !isTUN(link) {
		return fmt.Errorf("interface %q is not a tun device but %s", name, link.Type())
	}
	attrs := link.Attrs()
	if mtu > 0 && attrs.MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the mtu of %q to %d: %w", name, mtu, err)
		}
	}
	if attrs.TxQLen != tunTxQueueLen {
		if err := netlink.LinkSetTxQLen(link, tunTxQueueLen); err != nil {
			return fmt.Errorf("set the queue length of %q: %w", name, err)
		}
	}
	quietIPv6(name)
	addrs = slices.DeleteFunc(addrs, func(p netip.Prefix) bool {
		return !p.IsValid() || p.Addr().Is6() && !(takesIPv6(name) && usesIPv6(name))
	})
	for _, p := range addrs {
		if err := addAddr(link, p); err != nil {
			return fmt.Errorf("give %s to %q: %w", p, name, err)
		}
	}
	if attrs.Flags&1 == 0 { // net.FlagUp
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %q up: %w", name, err)
		}
		for _, p := range addrs {
			awaitLocal(p.Addr())
		}
	}
	return nil
}

// awaitLocal returns once the kernel takes packets to addr for its own. For an
// IPv6 address a worker of its own sees to that: in one of ten cases later than
// the first packet, and as late as 90 ms (2026-11-22, two busy cores).
func awaitLocal(addr netip.Addr) {
	if !addr.Is6() {
		return
	}
	for deadline := time.Now().Add(addrWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

func isTUN(link netlink.Link) bool { return link.Type() == "tuntap" || link.Type() == "tun" }

// quietIPv6 keeps the kernel from making a link-local address on the device and
// from soliciting routers there, and switches IPv6 on where the default for new
// interfaces is off: IPv6 packets have to enter the device as soon as any other
// interface has IPv6, which may be later. As long as none has, the device gets no
// IPv6 address (configureTUN), so that apps see none. Best effort: /proc/sys may
// be read-only in a container.
func quietIPv6(name string) {
	if !hasIPv6() {
		return
	}
	base := filepath.Join("net/ipv6/conf", name)
	_ = writeSysctl(filepath.Join(base, "addr_gen_mode"), addrGenNone)
	_ = writeSysctl(filepath.Join(base, "accept_ra"), "0")
	if !takesIPv6(name) {
		_ = writeSysctl(filepath.Join(base, "disable_ipv6"), "0")
	}
}

func addAddr(link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.Addr(), p.Bits()))}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	err := netlink.AddrAdd(link, addr)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// Queues implements platform.MultiQueue.
func (d *device) Queues() []platform.Queue {
	qs := make([]platform.Queue, len(d.queues))
	for i, q := range d.queues {
		qs[i] = q
	}
	return qs
}

// userspace makes wireguard's device on queue 0 and detaches the others, for
// whose packets nobody would wait.
func (d *device) userspace() (tun.Device, error) {
	d.nativeOnce.Do(func() {
		for _, q := range d.queues[1:] {
			if err := detachQueue(q.file); err != nil {
				d.nativeErr = fmt.Errorf("detach a queue of %q: %w", d.name, err)
				return
			}
		}
		var fd int
		err := control(d.queues[0].file, func(queue uintptr) (err error) {
			fd, err = unix.FcntlInt(queue, unix.F_DUPFD_CLOEXEC, 3)
			return err
		})
		if err != nil {
			d.nativeErr = fmt.Errorf("duplicate the queue of %q: %w", d.name, err)
			return
		}
		d.native, _, d.nativeErr = tun.CreateUnmonitoredTUNFromFD(fd)
	})
	return d.native, d.nativeErr
}

func detachQueue(f *os.File) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_DETACH_QUEUE)
	return control(f, func(fd uintptr) error { return unix.IoctlIfreq(int(fd), unix.TUNSETQUEUE, req) })
}

// control runs fn on f's descriptor, and leaves f's mode alone (File.Fd would
// make it blocking).
func control(f *os.File, fn func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if err := raw.Control(func(fd uintptr) { fnErr = fn(fd) }); err != nil {
		return err
	}
	return fnErr
}

func (d *device) File() *os.File { return d.queues[0].file }

func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t, err := d.userspace()
	if err != nil {
		return 0, err
	}
	n, err := t.Read(bufs, sizes, offset)
	return n, d.queues[0].translate(err)
}

func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	t, err := d.userspace()
	if err != nil {
		return 0, err
	}
	n, err := t.Write(bufs, offset)
	return n, d.queues[0].translate(err)
}

func (d *device) MTU() (int, error) {
	link, err := netlink.LinkByIndex(d.index)
	if err != nil {
		return 0, fmt.Errorf("read the mtu of %q: %w", d.name, err)
	}
	return link.Attrs().MTU, nil
}

func (d *device) Name() (string, error)    { return d.name, nil }
func (d *device) Events() <-chan tun.Event { return d.events }
func (d *device) BatchSize() int           { return tunBatch }

func (d *device) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// Close deletes the device, which ends every blocked read, and then closes the
// descriptors. Its addresses and routes go with it.
func (d *device) Close() error {
	d.closeOnce.Do(func() {
		close(d.closed)
		close(d.events)
		link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: d.index}}
		err := netlink.LinkDel(link)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			d.closeErr = fmt.Errorf("delete tun %q: %w", d.name, err)
		}
		d.nativeOnce.Do(func() { d.nativeErr = os.ErrClosed })
		if d.native != nil {
			_ = d.native.Close()
		}
		d.closeFiles()
	})
	return d.closeErr
}

func (d *device) closeFiles() {
	for _, q := range d.queues {
		_ = q.file.Close()
	}
}
