package linux

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// inDebian is inNamespace inside a Debian root of scripts/roots, with a D-Bus of
// its own: the programs that own resolv.conf run there as they are installed, and
// the host with the paths it has in the product. Nothing reaches the root in the
// cache: what may be written is a copy, and the rest is mounted read-only.
func inDebian(t *testing.T, name string) bool {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	roots, _ := filepath.Glob(filepath.Join(cache, "atlantic", "debian-*-"+name))
	if len(roots) == 0 {
		t.Skipf("SKIPPED: no Debian root %q: sudo make deps makes it", name)
	}
	if !inNamespace(t) {
		return false
	}
	root := roots[len(roots)-1]
	copied := t.TempDir()
	for _, dir := range []string{"/etc", "/var/lib"} {
		to := filepath.Join(copied, filepath.Base(dir))
		run(t, "cp", "-a", root+dir, to)
		run(t, "mount", "--bind", to, root+dir)
	}
	run(t, "mount", "--bind", "-o", "ro", root, root)
	for _, dir := range []string{"/etc", "/var/lib"} {
		run(t, "mount", "--bind", filepath.Join(copied, filepath.Base(dir)), root+dir)
	}
	for _, dir := range []string{"/proc", "/dev", "/sys"} {
		run(t, "mount", "--rbind", dir, root+dir)
	}
	for _, dir := range []string{"/run", "/tmp"} {
		run(t, "mount", "-t", "tmpfs", "none", root+dir)
	}
	if err := unix.Chroot(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir("/"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	return true
}

// debianMachine is the machine of inDebian: the product's own paths.
func debianMachine(t *testing.T) machine {
	t.Helper()
	return machine{dir: t.TempDir(), sys: realSystem()}
}

// startSystemBus runs the system's D-Bus as Debian configures it, but starts
// nothing that is asked for.
func startSystemBus(t *testing.T) {
	t.Helper()
	run(t, "mount", "-t", "tmpfs", "none", "/usr/share/dbus-1/system-services")
	if err := os.MkdirAll("/run/dbus", 0o755); err != nil {
		t.Fatal(err)
	}
	daemon(t, "dbus-daemon", "--system", "--nofork", "--nopidfile")
	waitFor(t, "the system bus", func() bool {
		return onBus("", func(context.Context, *dbus.Conn) error { return nil }) == nil
	})
}

// daemon starts a program that ends with the test; its log is the test's if it
// fails.
func daemon(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", args[0], log.String())
		}
	})
}
