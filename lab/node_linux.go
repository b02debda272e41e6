package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atlanticproxy/atlanticproxy/lab/netns"
)

// node is one machine: a network namespace, and a mount namespace in which
// /etc and /run are its own.
type node struct {
	kind Node
	ns   *netns.NS
	dir  string   // etc, run
	mnt  *os.File // the mount namespace; it lives as long as this is open
	root *os.File // / in it
}

func newNode(kind Node, ns *netns.NS, dir string) (*node, error) {
	n := &node{kind: kind, ns: ns, dir: dir}
	if err := os.MkdirAll(n.path("/run/atlantic"), 0o755); err != nil {
		return nil, err
	}
	if out, err := exec.Command("cp", "-a", "/etc", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy /etc: %w: %s", err, out)
	}
	// A machine's own configuration of the product is not the lab's.
	if err := os.RemoveAll(n.path("/etc/atlantic")); err != nil {
		return nil, err
	}
	if err := netns.OnThread(n.mounts); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return n, nil
}

// mounts makes the mount namespace, on a thread that is thrown away.
func (n *node) mounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Setns(int(n.ns.File().Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	type mount struct {
		from, to, kind string
		flags          uintptr
	}
	stage := filepath.Join(n.dir, "cgroup")
	if err := os.Mkdir(stage, 0o755); err != nil {
		return err
	}
	list := []mount{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE}, // nothing below reaches the machine
		{n.path("/etc"), "/etc", "", unix.MS_BIND},
		{n.path("/run"), "/run", "", unix.MS_BIND},
		{"/sys/fs/cgroup", stage, "", unix.MS_BIND | unix.MS_REC},
		{"lab", "/sys", "sysfs", 0}, // shows this namespace's devices
		{stage, "/sys/fs/cgroup", "", unix.MS_MOVE},
	}
	for _, m := range list {
		if err := unix.Mount(m.from, m.to, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.from, m.to, err)
		}
	}
	if err := n.sharedMemory(); err != nil {
		return err
	}
	var err error
	if n.root, err = os.Open("/"); err != nil {
		return err
	}
	n.mnt, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// sharedMemory gives the node a /dev/shm of its own (squid leaves files of
// fixed names there), in which the lab's folder stays where it is.
func (n *node) sharedMemory() error {
	lab := filepath.Dir(n.dir)
	fd, err := unix.Open(lab, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mount("lab", "/dev/shm", "tmpfs", 0, "mode=1777"); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	if filepath.Dir(lab) != "/dev/shm" {
		return nil
	}
	if err := os.Mkdir(lab, 0o755); err != nil {
		return err
	}
	// By its descriptor: its path is hidden now.
	if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", fd), lab, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the lab's folder: %w", err)
	}
	return nil
}

func (n *node) close() error { return errors.Join(n.mnt.Close(), n.root.Close()) }

// path is where a file of the node's /etc or /run is on this machine.
func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) writeResolvConf(text string) error {
	path := n.path("/etc/resolv.conf")
	os.Remove(path) // it may be a link into the machine's own /run
	return os.WriteFile(path, []byte(text), 0o644)
}

// Command makes a command that runs in a node: its network, its /etc and its
// /run, which all commands of the node share and the machine never sees. The
// process is the program itself, no wrapper: signals reach it. It starts in the
// caller's directory; Cmd.Dir has no effect.
func (l *Lab) Command(n Node, name string, args ...string) *exec.Cmd {
	x := l.nodes[n]
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	// By this process's descriptors, so that the program inherits none.
	own := "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/"
	return exec.Command("nsenter", append([]string{
		"--net=" + own + strconv.Itoa(int(x.ns.File().Fd())),
		"--mount=" + own + strconv.Itoa(int(x.mnt.Fd())),
		// setns(2) goes to the namespace's root, which is not ours in a chroot.
		"--root=" + own + strconv.Itoa(int(x.root.Fd())),
		"--wdns=" + dir, "--", name}, args...)...)
}

// Path is where a file of a node's /etc or /run is on this machine, to be read,
// written or (a unix socket) connected to.
func (l *Lab) Path(n Node, name string) string { return l.nodes[n].path(name) }

// ResolvConf is the content of a node's /etc/resolv.conf.
func (l *Lab) ResolvConf(n Node) (string, error) {
	b, err := os.ReadFile(l.Path(n, "/etc/resolv.conf"))
	return string(b), err
}

// SetResolvConf replaces a node's /etc/resolv.conf by a plain file.
func (l *Lab) SetResolvConf(n Node, text string) error { return l.nodes[n].writeResolvConf(text) }

// killAll kills what runs in the node.
func (n *node) killAll() error {
	info, err := n.ns.File().Stat()
	if err != nil {
		return err
	}
	if left := killIn(info); len(left) > 0 {
		return fmt.Errorf("%s: processes survive SIGKILL: %v", n.kind, left)
	}
	return nil
}

// killIn kills all processes whose network namespace is ns, waits for at most
// two seconds and returns those that are left.
func killIn(ns os.FileInfo) []int {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil || os.SameFile(own, ns) || ns.Sys().(*syscall.Stat_t).Dev != own.Sys().(*syscall.Stat_t).Dev {
		return nil // ours, or no namespace at all
	}
	var left []int
	for range 200 {
		left = processesIn(ns)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); errors.Is(err, unix.ESRCH) {
				continue
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return left
}

func processesIn(ns os.FileInfo) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		info, err := os.Stat("/proc/" + e.Name() + "/ns/net")
		if err == nil && os.SameFile(info, ns) && !zombie(e.Name()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// zombie reports a process that has ended and waits for its parent.
func zombie(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	_, after, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(after, "Z")
}
