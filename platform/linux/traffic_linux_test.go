package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atlanticproxy/atlanticproxy/platform"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// peer is a second namespace at the far end of eth0: the router 192.168.7.1,
// and behind it 203.0.113.9 and 2001:db8::9, strangers in the Internet.
type peer struct{ ns netns.NsHandle }

func newPeer(t *testing.T) peer {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	pid := strconv.Itoa(cmd.Process.Pid)
	run(t, "ip", "link", "set", "far0", "netns", pid)
	for _, line := range strings.Split(strings.TrimSpace(`
ip link set lo up
ip link set far0 addrgenmode none up
ip addr add 192.168.7.1/24 dev far0
ip addr add 203.0.113.9/32 dev lo
ip -6 addr add fe80::1/64 dev far0 nodad
ip -6 addr add fd00:7::1/64 dev far0 nodad
ip -6 addr add 2001:db8::9/128 dev lo nodad`), "\n") {
		run(t, append([]string{"nsenter", "-t", pid, "-n"}, strings.Fields(line)...)...)
	}
	ns, err := netns.GetFromPid(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return peer{ns}
}

// do runs f on a thread in the peer's namespace.
func (p peer) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(p.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (p peer) dial(t *testing.T, from, to string) net.Conn {
	t.Helper()
	var conn net.Conn
	err := p.do(func() (err error) {
		d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err = d.Dial("tcp", to)
		return err
	})
	if err != nil {
		t.Fatalf("dial %s from %s: %v", to, from, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (p peer) listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var ln net.Listener
	if err := p.do(func() (err error) { ln, err = net.Listen("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// serveEcho answers every connection with what it is sent.
func serveEcho(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 100)
			for {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				_, _ = c.Write(buf[:n])
			}
		}()
	}
}

func echoes(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	buf := make([]byte, 4)
	if _, err := c.Read(buf); err != nil {
		return err
	}
	if string(buf) != "ping" {
		return fmt.Errorf("got %q", buf)
	}
	return nil
}

// The person who typed `up` over SSH stays connected, new ones get in, own
// sockets get out, and everything else enters the TUN; with strict reverse-path
// checks, for both families.
func TestInboundConnectionsKeepTheirInterface(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, name := range []string{"all", "default", "eth0"} {
		if err := writeSysctl("net/ipv4/conf/"+name+"/rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
	}
	far := newPeer(t)
	ln, err := net.Listen("tcp", "[::]:2222") // sshd: both families on one socket
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go serveEcho(ln)
	outside := far.listen(t, "203.0.113.9:8080")
	go serveEcho(outside)

	before4 := far.dial(t, "203.0.113.9", "192.168.7.2:2222")
	before6 := far.dial(t, "2001:db8::9", "[fd00:7::2]:2222")
	for _, c := range []net.Conn{before4, before6} {
		if err := echoes(c); err != nil {
			t.Fatalf("before up: %v", err)
		}
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	t.Log(run(t, "nft", "list", "ruleset"))

	for name, c := range map[string]net.Conn{"v4": before4, "v6": before6} {
		if err := echoes(c); err != nil {
			t.Errorf("the %s connection from before: %v", name, err)
		}
	}
	if err := echoes(far.dial(t, "203.0.113.9", "192.168.7.2:2222")); err != nil {
		t.Errorf("a new connection from outside: %v", err)
	}
	if err := echoes(far.dial(t, "2001:db8::9", "[fd00:7::2]:2222")); err != nil {
		t.Errorf("a new IPv6 connection from outside: %v", err)
	}
	own := net.Dialer{Control: h.Control, Timeout: 2 * time.Second}
	c, err := own.Dial("tcp", "203.0.113.9:8080")
	if err != nil {
		t.Fatalf("a socket of ours: %v", err)
	}
	defer c.Close()
	if err := echoes(c); err != nil {
		t.Errorf("a socket of ours: %v", err)
	}
	if got, device := sockopts(t, c); got != int(mark) || device != "eth0" {
		t.Errorf("a socket of ours has mark %#x and device %q", got, device)
	}
	lan, err := own.Dial("udp", "192.168.7.1:53") // on the link: only marked
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	if got, device := sockopts(t, lan); got != int(mark) || device != "" {
		t.Errorf("a socket of ours to the LAN has mark %#x and device %q", got, device)
	}
	if c, err := net.DialTimeout("tcp", "203.0.113.9:8080", 500*time.Millisecond); err == nil {
		c.Close()
		t.Error("an app's connection left by eth0")
	}
}

func sockopts(t *testing.T, c net.Conn) (mark int, device string) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		mark, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK)
		device, _ = unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	})
	if err != nil {
		t.Fatal(err)
	}
	return mark, device
}

// Without nftables the listening ports keep their interface.
func TestInboundWithoutNFT(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	far := newPeer(t)
	ln, err := net.Listen("tcp4", "0.0.0.0:2222")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go serveEcho(ln)
	before := far.dial(t, "203.0.113.9", "192.168.7.2:2222")
	m := newMachine(t)
	m.sys.noNFT = true
	h := m.open(t)
	up(t, h)
	if err := echoes(before); err != nil {
		t.Errorf("the connection from before: %v", err)
	}
	if err := echoes(far.dial(t, "203.0.113.9", "192.168.7.2:2222")); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

func TestWhereTrafficGoes(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	up(t, h)
	for to, want := range map[string]string{
		"203.0.113.9":                           "atlantic0",
		"2001:db8::9":                           "atlantic0",
		"192.168.7.77":                          "eth0",
		"fd00:7::77":                            "eth0",
		"192.168.8.1":                           "atlantic0", // private, not attached
		"10.1.2.3":                              "atlantic0",
		"239.1.2.3":                             "eth0",
		"198.18.0.2":                            "atlantic0",
		"127.0.0.1":                             "lo",
		"192.168.7.77 ipproto udp dport 53":     "atlantic0",
		"fd00:7::77 ipproto tcp dport 53":       "atlantic0",
		"203.0.113.9 mark 0x41540000":           "eth0",
		"203.0.113.9 mark 0x80000":              "eth0", // another program's
		"192.168.7.77 ipproto udp dport 5353":   "eth0",
		"203.0.113.9 ipproto udp dport 53":      "atlantic0",
		"203.0.113.9 mark 0x4154cafe":           "eth0",
		"2001:db8::9 mark 0x41540000":           "eth0",
		"169.254.169.254 ipproto udp dport 123": "eth0",
	} {
		if got := routeOf(t, strings.Fields(to)...); got != want {
			t.Errorf("%s leaves by %s, want %s", to, got, want)
		}
	}
	if addrs := run(t, "ip", "-6", "addr", "show", "dev", "atlantic0"); strings.Contains(addrs, "fe80::") {
		t.Errorf("the tun has a link-local address:\n%s", addrs)
	}
	cfg := everything()
	cfg.LAN, cfg.Default6 = false, false
	if err := h.Apply(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if got := routeOf(t, "192.168.7.77"); got != "atlantic0" {
		t.Errorf("without lan 192.168.7.77 leaves by %s", got)
	}
	if got := routeOf(t, "2001:db8::9"); got != "eth0" {
		t.Errorf("without Default6 IPv6 leaves by %s", got)
	}
}

// Packets come out of the queues with their virtio_net_hdr, and out of Read
// without. Closing ends both.
func TestTUNCarriesPackets(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, queues := range []int{1, 4} {
		m := newMachine(t)
		h := m.open(t)
		open := func() tun.Device {
			dev, err := h.OpenTUN(platform.TUNConfig{
				Name: "atlantic0", MTU: 1400, Queues: queues, Addr4: netip.MustParsePrefix("198.18.0.1/15"),
			})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(dev.(platform.MultiQueue).Queues()); n != queues {
				t.Fatalf("%d queues, want %d", n, queues)
			}
			return dev
		}
		t.Run(fmt.Sprint(queues, " raw"), func(t *testing.T) { testRawQueues(t, open()) })
		t.Run(fmt.Sprint(queues, " through Read"), func(t *testing.T) { testDeviceRead(t, open()) })
		h.Close()
	}
}

func testRawQueues(t *testing.T, dev tun.Device) {
	got := make(chan []byte, 100)
	ended := make(chan error, 16)
	qs := dev.(platform.MultiQueue).Queues()
	for _, q := range qs {
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, err := q.Read(buf)
				if err != nil {
					ended <- err
					return
				}
				got <- bytes.Clone(buf[:n])
			}
		}()
	}
	sendTo(t, "198.18.9.9:9999", "hello raw")
	select {
	case p := <-got:
		if !bytes.HasSuffix(p, []byte("hello raw")) || p[vnetHdrLen]>>4 != 4 {
			t.Errorf("packet %x", p)
		}
	case <-time.After(2 * time.Second):
		t.Error("no packet in any queue")
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	for range qs {
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("read ended with %v, want os.ErrClosed", err)
			}
		case <-time.After(2 * time.Second):
			t.Fatal("a queue's Read is blocked after Close")
		}
	}
}

func testDeviceRead(t *testing.T, dev tun.Device) {
	const offset = 10
	bufs := make([][]byte, dev.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	got := make(chan string, 300)
	ended := make(chan error, 1)
	go func() {
		sizes := make([]int, len(bufs))
		for {
			n, err := dev.Read(bufs, sizes, offset)
			if err != nil {
				ended <- err
				return
			}
			for i := range n {
				got <- string(bufs[i][offset : offset+sizes[i]])
			}
		}
	}()
	for i := range 5 { // whatever queue a flow would hash to
		again := time.NewTicker(200 * time.Millisecond) // the other queues are detached at the first Read
		for tries, missing := 0, true; missing; tries++ {
			sendTo(t, "198.18.9.9:"+strconv.Itoa(9000+i), "hello device")
			select {
			case p := <-got:
				missing = false
				if !strings.HasSuffix(p, "hello device") {
					t.Errorf("packet %q", p)
				}
			case <-again.C:
				if tries == 50 {
					t.Fatal("a packet is missing")
				}
			}
		}
		again.Stop()
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("read ended with %v, want os.ErrClosed", err)
		}
	case <-time.After(2 * time.Second):
		t.Error("Read is blocked after Close")
	}
}

func sendTo(t *testing.T, address, text string) {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestOpenTUNErrors(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	h := m.open(t)
	open := func(name string) error {
		_, err := h.OpenTUN(platform.TUNConfig{Name: name, MTU: 1500})
		return err
	}
	if err := open("eth0"); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a name that is taken: %v", err)
	}
	run(t, "ip", "tuntap", "add", "foreign0", "mode", "tun")
	if err := open("foreign0"); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("a persistent tun of another: %v", err)
	}
	for _, name := range []string{"", "a/b", "x y", "0123456789abcdef", "tun%d", ".", "..", ".a"} {
		if err := open(name); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	run(t, "mount", "-t", "tmpfs", "none", "/dev/net") // hides /dev/net/tun in this namespace
	if err := open("atlantic0"); !errors.Is(err, platform.ErrNoTUN) || !strings.Contains(err.Error(), "modprobe tun") {
		t.Errorf("without /dev/net/tun: %v", err)
	}
}

func TestUnprivileged(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	m := newMachine(t)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	runtime.LockOSThread() // capabilities are a thread's
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	h := m.open(t)
	if _, err := h.OpenTUN(platform.TUNConfig{Name: "atlantic0"}); !errors.Is(err, platform.ErrPermission) {
		t.Errorf("OpenTUN: %v, want ErrPermission", err)
	}
	if err := h.Apply(context.Background(), everything()); !errors.Is(err, platform.ErrPermission) {
		t.Errorf("Apply: %v, want ErrPermission", err)
	}
	if err := h.Apply(context.Background(), platform.NetConfig{}); err != nil {
		t.Errorf("Apply of the zero value: %v", err)
	}
	if !h.Uplink().Up || h.Uplink().Interface != "eth0" {
		t.Errorf("uplink %+v", h.Uplink())
	}
	d := net.Dialer{Control: h.Control}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}
