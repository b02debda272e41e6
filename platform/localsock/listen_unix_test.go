//go:build linux || darwin

package localsock

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// shortDir makes a directory that other users can enter and whose path leaves
// room for a socket name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestListenMakesDirectoryAndCleansUp(t *testing.T) {
	old := syscall.Umask(0o077) // must not narrow what users need
	defer syscall.Umask(old)
	dir := filepath.Join(shortDir(t), "atlantic")
	path := filepath.Join(dir, "s")
	ln := listen(t, path)
	for p, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o755, path: fs.ModeSocket | 0o666} {
		if fi, err := os.Lstat(p); err != nil || fi.Mode() != want {
			t.Errorf("%s: mode %v, want %v (%v)", p, fi.Mode(), want, err)
		}
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if err := ln.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// IA-03: no moment at which the socket is wider than it ends up being.
func TestNeverWiderThanFinal(t *testing.T) {
	dir := filepath.Join(shortDir(t), "atlantic")
	path := filepath.Join(dir, "s")
	stop, stopped := make(chan struct{}), make(chan struct{})
	seen := map[fs.FileMode]int{} // owned by the goroutine until stopped
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fi, err := os.Lstat(path); err == nil {
				seen[fi.Mode()]++
			}
			if fi, err := os.Lstat(dir); err == nil && fi.Mode().Perm()&^0o755 != 0 {
				seen[fi.Mode()]++
			}
		}
	}()
	for range 200 {
		ln, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
	}
	close(stop)
	<-stopped
	for mode, n := range seen {
		if mode.Type() != fs.ModeSocket || mode.Perm()&^socketMode != 0 {
			t.Errorf("seen %d times with mode %v", n, mode)
		}
	}
	if len(seen) == 0 {
		t.Error("the watcher never saw the socket: nothing was tested")
	}
}

func TestSecondInstance(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	listen(t, path)
	if _, err := Listen(path); !errors.Is(err, ErrRunning) {
		t.Errorf("second Listen: %v, want ErrRunning", err)
	}
	// The first one is unharmed.
	conn, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// One that does not know our lock is not pushed aside either.
func TestForeignListenerIsNotReplaced(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Listen(path); !errors.Is(err, ErrRunning) {
		t.Errorf("got %v, want ErrRunning", err)
	}
	if _, err := os.Lstat(path + ".lock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed Listen left its lock: %v", err)
	}
}

func TestOneOfManyStarters(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	leaveStale(t, path)
	var mu sync.Mutex
	var won []net.Listener
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			ln, err := Listen(path)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, ln)
			} else if !errors.Is(err, ErrRunning) {
				t.Errorf("a loser got: %v", err)
			}
		})
	}
	wg.Wait()
	for _, ln := range won {
		defer ln.Close()
	}
	if len(won) != 1 {
		t.Errorf("%d of 20 own the socket, want 1", len(won))
	}
}

func leaveStale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	leaveStale(t, path)
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil { // as kill -9 leaves it
		t.Fatal(err)
	}
	listen(t, path)
	conn, err := Dial(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// IA-04: what somebody put there first is neither used nor removed.
func TestObstacles(t *testing.T) {
	tests := []struct {
		name string
		make func(path string) error
		want string
		root bool
	}{
		{"file", func(p string) error { return os.WriteFile(p, []byte("precious"), 0o644) }, "is not a socket (a regular file)", false},
		{"directory", func(p string) error { return os.Mkdir(p, 0o755) }, "is not a socket (a directory)", false},
		{"fifo", func(p string) error { return syscall.Mkfifo(p, 0o644) }, "is not a socket (a fifo)", false},
		{"symlink", func(p string) error { return os.Symlink("/etc/passwd", p) }, "is not a socket (a symbolic link)", false},
		{"dangling symlink", func(p string) error { return os.Symlink("nowhere", p) }, "is not a socket (a symbolic link)", false},
		{"lock is a symlink", func(p string) error { return os.Symlink("/etc/passwd", p+".lock") }, "lock", false},
		{"lock is a fifo", func(p string) error { return syscall.Mkfifo(p+".lock", 0o600) }, "is not a lock file", false},
		{"socket of another user", func(p string) error {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer syscall.Close(fd)
			return errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: p}), os.Chown(p, 65534, 65534))
		}, "owned by uid 65534", true},
		{"directory anybody may write", func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) }, "everybody may write in it", false},
		{"directory of another user", func(p string) error { return os.Chown(filepath.Dir(p), 65534, 65534) }, "user 65534 owns it", true},
		{"directory a group may write", func(p string) error {
			return errors.Join(os.Chown(filepath.Dir(p), 0, 65534), os.Chmod(filepath.Dir(p), 0o775))
		}, "group 65534 may write in it", true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if tc.root && os.Getuid() != 0 {
				t.Skip("SKIPPED: not root: cannot make files of another user")
			}
			path := filepath.Join(shortDir(t), "s")
			if err := tc.make(path); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, filepath.Dir(path))
			ln, err := Listen(path)
			if err == nil {
				ln.Close()
				t.Fatal("Listen took it")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q, want it to say %q", err, tc.want)
			}
			if after := snapshot(t, filepath.Dir(path)); after != before {
				t.Errorf("changed:\n%s\nto:\n%s", before, after)
			}
		})
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(fi.Mode().String() + " " + e.Name() + "\n")
	}
	return b.String()
}

func TestLongPath(t *testing.T) {
	path := "/tmp/" + strings.Repeat("x", 200)
	_, lerr := Listen(path)
	_, derr := Dial(context.Background(), path)
	for _, err := range []error{lerr, derr} {
		if err == nil || !strings.Contains(err.Error(), "the system allows 10") {
			t.Errorf("got %v, want the limit", err)
		}
	}
}

func TestDialNobody(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	if _, err := Dial(context.Background(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	leaveStale(t, path)
	if _, err := Dial(context.Background(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("stale socket: %v", err)
	}
}

func TestPaths(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	if got, want := userPath(), "/run/user/7/atlantic/atlantic.sock"; got != want {
		t.Errorf("user path %s, want %s", got, want)
	}
	t.Setenv("XDG_RUNTIME_DIR", "relative") // the specification: ignore it
	if got := userPath(); !filepath.IsAbs(got) || !strings.HasSuffix(got, "/atlantic.sock") {
		t.Errorf("user path without a runtime directory: %s", got)
	}
	if got := DefaultPath(); os.Geteuid() == 0 && got != systemPath {
		t.Errorf("root listens at %s", got)
	}
	t.Setenv(PathVar, "/x/y")
	if got := ClientPath(); got != "/x/y" {
		t.Errorf("client path %s despite %s", got, PathVar)
	}
	if got := DefaultPath(); got == "/x/y" {
		t.Error("the client's variable moved the service")
	}
}

// The directory that Listen made goes with its socket, unless it is in use.
func TestDirectoryGoes(t *testing.T) {
	dir := filepath.Join(shortDir(t), "atlantic")
	for _, other := range []bool{false, true} {
		ln, err := Listen(filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		if other {
			if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(dir); (err == nil) != other {
			t.Errorf("something else in it: %v; the directory after Close: %v", other, err)
		}
	}
}

// A directory that is safe itself may lie in one that is not.
func TestUnsafeParent(t *testing.T) {
	parent := shortDir(t)
	dir := filepath.Join(parent, "atlantic")
	for range 2 { // the directory is missing, then there
		if err := os.Chmod(parent, 0o777); err != nil {
			t.Fatal(err)
		}
		ln, err := Listen(filepath.Join(dir, "s"))
		if err == nil {
			ln.Close()
			t.Fatal("Listen took a directory that everybody may replace")
		}
		if !strings.Contains(err.Error(), parent+": everybody may write in it") {
			t.Error(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
