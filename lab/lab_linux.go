package lab

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/atlanticproxy/atlanticproxy/lab/ca"
	"github.com/atlanticproxy/atlanticproxy/lab/capture"
	"github.com/atlanticproxy/atlanticproxy/lab/netns"
	"github.com/atlanticproxy/atlanticproxy/lab/origin"
	"github.com/atlanticproxy/atlanticproxy/lab/snapshot"
	"github.com/atlanticproxy/atlanticproxy/lab/wanem"
)

// Node is one of the lab's machines.
type Node string

const (
	Client   Node = "client"
	Router   Node = "router"
	Internet Node = "inet"
	LAN      Node = "lan" // another machine beside the client; only with Options.LAN
)

// Options of New.
type Options struct {
	// Impair puts an impairment box (Lab.WAN) between router and internet. It
	// costs throughput even while it does nothing; without it the path is a
	// plain veth pair.
	Impair bool
	// Seed of the impairment's random decisions; 0 picks one (Lab.Seed).
	Seed uint64
	// LAN adds a second machine to the client's network.
	LAN bool
	Log *slog.Logger
}

// Lab is a running lab. Its methods may be called from any goroutine.
type Lab struct {
	CA     *ca.CA
	Zone   *origin.Zone
	Origin *origin.Server
	WAN    *wanem.Box // A is the router's side, B the internet's; nil unless Options.Impair
	Seed   uint64

	log   *slog.Logger
	name  string // atl-PID-N
	dir   string // of files; one folder per node
	nodes map[Node]*node

	mu     sync.Mutex
	closer []func() error // run in reverse by Close; guarded by mu
}

// ErrNotRoot is what New fails with for other users.
var ErrNotRoot = errors.New("the lab makes network namespaces, and that needs root")

// New sweeps what dead labs left, builds a new one and starts its origins.
func New(opt Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Seed == 0 {
		opt.Seed = rand.Uint64()
	}
	Sweep()
	l := &Lab{log: opt.Log, Seed: opt.Seed, nodes: map[Node]*node{}, Zone: zone()}
	if err := l.build(opt); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

// NewTest is New for a test: closed with it, and skipped loudly unless root.
func NewTest(t testing.TB, opt Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: this test needs network namespaces; run it as root")
	}
	l, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("lab %s, seed %d", l.name, l.Seed)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

func (l *Lab) build(opt Options) error {
	nodes := []Node{Client, Router, Internet}
	if opt.LAN {
		nodes = append(nodes, LAN)
	}
	first, err := l.claim(nodes[0])
	if err != nil {
		return err
	}
	if l.CA, err = ca.New(); err != nil {
		return err
	}
	l.dir = filepath.Join(base(), l.name)
	l.onClose(func() error { return os.RemoveAll(l.dir) })
	for _, n := range nodes {
		ns := first
		if n != nodes[0] {
			if ns, err = netns.Create(l.name + "-" + string(n)); err != nil {
				return err
			}
			l.onClose(ns.Close)
		}
		machine, err := newNode(n, ns, filepath.Join(l.dir, string(n)))
		if err != nil {
			return err
		}
		l.nodes[n] = machine
		l.onClose(machine.close)
	}
	if err := os.WriteFile(l.CAFile(), l.CA.PEM(), 0o644); err != nil {
		return err
	}
	if err := l.connect(opt); err != nil {
		return err
	}
	if err := l.names(); err != nil {
		return err
	}
	return l.startOrigin()
}

// claim makes the first namespace under a name that nobody else has.
func (l *Lab) claim(n Node) (*netns.NS, error) {
	for i := 0; ; i++ {
		l.name = fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), i)
		ns, err := netns.Create(l.name + "-" + string(n))
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			l.onClose(ns.Close)
		}
		return ns, err
	}
}

func (l *Lab) startOrigin() error {
	cert, err := l.Certificate()
	if err != nil {
		return err
	}
	l.Origin, err = origin.Start(origin.Options{
		Network: l.nodes[Internet].ns,
		Addrs:   []netip.Addr{Origin4(), Origin6()},
		DNS:     []netip.Addr{DNS4(), DNS6()},
		Zone:    l.Zone,
		Cert:    cert,
		Log:     l.log,
	})
	if err != nil {
		return err
	}
	l.onClose(l.Origin.Close)
	return nil
}

// Certificate signs for the names of the zone, *.example.test and every fixed address of the lab,
// and for the further addresses given.
func (l *Lab) Certificate(more ...netip.Addr) (tls.Certificate, error) {
	addrs := []netip.Addr{Origin4(), Origin6(), DNS4(), DNS6()}
	for i := range upstreams {
		addrs = append(addrs, Upstream4(i), Upstream6(i))
	}
	// Each by name too: clients reject a wildcard right under the last label.
	names := slices.Collect(maps.Keys(l.Zone.Hosts))
	return l.CA.Issue(append(names, "example.test", "*.example.test", "alias.test", "lab.test"), append(addrs, more...))
}

// CAFile is the PEM file of the lab's root certificate; programs in every node
// can read it by this path.
func (l *Lab) CAFile() string { return filepath.Join(l.dir, "ca.pem") }

// Dir is a folder for files of this lab; removed by Close.
func (l *Lab) Dir() string { return l.dir }

// NS is the namespace of a node.
func (l *Lab) NS(n Node) *netns.NS { return l.nodes[n].ns }

// In runs fn in a node's network namespace, on the calling goroutine. Sockets
// made there stay there.
func (l *Lab) In(n Node, fn func() error) error { return l.nodes[n].ns.Do(fn) }

// Capture records what the client (and the LAN machine) sends to the router.
// pcap names a file to write too, "" for none. The caller closes it.
func (l *Lab) Capture(pcap string) (*capture.Capture, error) {
	return capture.Start(capture.Options{NS: l.nodes[Router].ns, Device: clientPort, PCAP: pcap})
}

// Snapshot records the network state of a node, with resolv.conf and hosts.
func (l *Lab) Snapshot(n Node) (snapshot.Snapshot, error) {
	return snapshot.Take(snapshot.Options{
		Command: l.commandOf(n),
		Files: map[string]string{
			"/etc/resolv.conf": l.Path(n, "/etc/resolv.conf"),
			"/etc/hosts":       l.Path(n, "/etc/hosts"),
		},
		Sysctls: snapshot.Sysctls("eth0"),
	})
}

// Close ends everything in the lab, kills what still runs in its namespaces and
// removes them. It is idempotent.
func (l *Lab) Close() error {
	l.mu.Lock()
	closer := l.closer
	l.closer = nil
	l.mu.Unlock()
	if closer == nil {
		return nil
	}
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.killAll())
	}
	for _, f := range slices.Backward(closer) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// onClose has Close call f, before what was registered earlier.
func (l *Lab) onClose(f func() error) {
	l.mu.Lock()
	l.closer = append(l.closer, f)
	l.mu.Unlock()
}

// Sweep removes what labs of dead processes left: their programs, namespaces
// and files. New calls it.
func Sweep() {
	for _, name := range netns.Names(prefix) {
		if !alive(name) {
			if ns, err := os.Stat(filepath.Join(netns.Dir, name)); err == nil {
				killIn(ns)
			}
			netns.Remove(name)
		}
	}
	dirs, _ := filepath.Glob(filepath.Join(base(), prefix+"*"))
	for _, d := range dirs {
		if !alive(filepath.Base(d)) {
			os.RemoveAll(d)
		}
	}
}

// base holds the labs' folders: memory where there is some, since each copies
// 1,600 small files of /etc (0.07 s there, 0.8 s on ext4, November 2026).
func base() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

// prefix of all names; the process id follows.
const prefix = "atl-"

// alive reports whether the process of a lab's name still runs, or the name is
// not a lab's.
func alive(name string) bool {
	pid, _, ok := strings.Cut(strings.TrimPrefix(name, prefix), "-")
	if !ok || strings.Trim(pid, "0123456789") != "" {
		return true
	}
	_, err := os.Stat("/proc/" + pid)
	return err == nil
}
