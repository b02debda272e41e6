package netstack

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/atlanticproxy/atlanticproxy/platform"
)

func sh(t testing.TB, line string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// rawTUN is a TUN device with raw queues, as platform/linux makes them.
type rawTUN struct {
	tun.Device // nil: the kernel path uses nothing else
	name       string
	queues     []platform.Queue
	close      func() error
}

func (d *rawTUN) Queues() []platform.Queue { return d.queues }
func (d *rawTUN) Name() (string, error)    { return d.name, nil }
func (d *rawTUN) Close() error             { return d.close() }

var _ platform.MultiQueue = (*rawTUN)(nil)

// openTUN makes the device in this process's namespace, with the addresses and
// default routes of the product.
func openTUN(t testing.TB, name string, queues, mtu int) *rawTUN {
	t.Helper()
	d := &rawTUN{name: name}
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		req, _ := unix.NewIfreq(name)
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
		if err := errors.Join(
			unix.IoctlIfreq(fd, unix.TUNSETIFF, req),
			unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6),
			unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetBytes),
		); err != nil {
			t.Fatal(err)
		}
		d.queues = append(d.queues, os.NewFile(uintptr(fd), name))
	}
	d.close = sync.OnceValue(func() error {
		var err error
		for _, q := range d.queues {
			err = errors.Join(err, q.(*os.File).Close()) // ends its reads
		}
		return err
	})
	setUpTUN(t, name, mtu)
	return d
}

// setUpTUN gives the device the addresses and default routes of the product.
func setUpTUN(t testing.TB, name string, mtu int) {
	t.Helper()
	sh(t, strings.NewReplacer("DEV", name).Replace(`
		sysctl -qw net.ipv4.conf.all.rp_filter=1 || echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter
		ip link set lo up
		ip addr add 198.18.0.1/15 dev DEV
		ip -6 addr add fd61:746c:616e:7469::1/64 dev DEV nodad
		ip link set DEV up
		ip route add default dev DEV
		ip -6 route add default dev DEV`))
	sh(t, "ip link set "+name+" mtu "+strconv.Itoa(mtu))
}
