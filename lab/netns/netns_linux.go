package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is where named namespaces live, as ip-netns(8) has it.
const Dir = "/run/netns"

// NS is one network namespace. Its methods may be called from any goroutine.
type NS struct {
	name string
	f    *os.File
}

// Create makes a new namespace and binds it to Dir/name. It fails with
// os.ErrExist if the name is taken, so a name can serve as a lock.
func Create(name string) (*NS, error) {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(Dir, name)
	mark, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, err
	}
	mark.Close()
	if err := OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network: %w", err)
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	}); err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("create namespace %s: %w", name, err)
	}
	f, err := os.Open(path)
	if err != nil {
		Remove(name)
		return nil, err
	}
	return &NS{name: name, f: f}, nil
}

// Names lists the named namespaces that start with prefix.
func Names(prefix string) []string {
	entries, _ := os.ReadDir(Dir)
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// Remove unbinds a named namespace. The kernel frees it with its last user.
func Remove(name string) error {
	path := filepath.Join(Dir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil // made, but never bound
	}
	if rm := os.Remove(path); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

// Name is the namespace's name under Dir.
func (n *NS) Name() string { return n.name }

// File is an open handle of the namespace; it stays owned by n.
func (n *NS) File() *os.File { return n.f }

// Close unbinds and closes the namespace. What runs in it lives on.
func (n *NS) Close() error {
	return errors.Join(Remove(n.name), n.f.Close())
}

// Do runs fn in the namespace, on the calling goroutine, which is locked to
// its thread meanwhile. Goroutines that fn starts are not in the namespace;
// sockets that fn makes are.
func (n *NS) Do(fn func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter namespace %s: %w", n.name, err)
	}
	defer func() {
		// A thread that cannot come home must never serve another goroutine:
		// it stays locked and dies with this one.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// OnThread runs fn on a thread of its own that ends afterwards, so fn may
// change what belongs to a thread (namespaces, directory) for good. The
// process's main thread is never taken: /proc/PID/ns shows that one.
func OnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- OnThread(fn) // this goroutine occupies the main thread
			runtime.UnlockOSThread()
			return
		}
		done <- fn() // still locked when the goroutine ends: so does the thread
	}()
	return <-done
}
