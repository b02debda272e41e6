package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kindFile    = "file"
	kindSymlink = "symlink"
	kindMissing = "missing"

	tmpSuffix       = ".atlantic"
	resolvconfLimit = 10 * time.Second
)

// savedFile is what was found in the place of resolv.conf.
type savedFile struct {
	Kind    string `json:"kind"`
	Target  string `json:"target,omitempty"` // of a symlink, as written
	Mode    uint32 `json:"mode,omitempty"`   // permission bits
	UID     int    `json:"uid,omitempty"`
	GID     int    `json:"gid,omitempty"`
	Content []byte `json:"content,omitempty"` // through the symlink, if it leads anywhere
}

func snapshotFile(path string) (*savedFile, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return &savedFile{Kind: kindMissing}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	s := &savedFile{Kind: kindFile, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		s.Kind = kindSymlink
		if s.Target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	case unix.S_IFREG:
	default:
		return nil, fmt.Errorf("%s is neither a file nor a symbolic link", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil // dangling
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if s.Content, err = io.ReadAll(io.LimitReader(f, maxResolvConf+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(s.Content) > maxResolvConf {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxResolvConf)
	}
	return s, nil
}

// holdsOurs reports whether now is the file that we wrote. An empty one counts:
// that is what a crash in the middle of writing in place leaves.
func holdsOurs(now *savedFile, ours []byte) bool {
	return now.Kind == kindFile && (len(now.Content) == 0 || bytes.Equal(now.Content, ours))
}

// replaceFile puts content in place of path, atomically, with the mode and
// owner in like. A file that is a mount point is written in place.
func replaceFile(path string, content []byte, like *savedFile) error {
	mode, uid, gid := like.Mode, like.UID, like.GID
	if like.Kind != kindFile {
		mode, uid, gid = 0o644, 0, 0
	}
	tmp := path + tmpSuffix
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if isMountPoint(path) { // a read-only /etc with a writable file in it
			return writeInPlace(path, content)
		}
		return err
	}
	defer os.Remove(tmp) // gone already if all went well
	_, err = f.Write(content)
	if err == nil && os.Geteuid() == 0 {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := os.Rename(tmp, path); errors.Is(err, unix.EBUSY) {
		return writeInPlace(path, content)
	} else if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeInPlace(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

func isMountPoint(path string) bool {
	var file, dir unix.Stat_t
	return unix.Stat(path, &file) == nil && unix.Stat(filepath.Dir(path), &dir) == nil && file.Dev != dir.Dev
}

// restoreFile puts back what was found, unless path no longer holds ours:
// whatever somebody has written since is newer and stays.
func restoreFile(path string, ours []byte, was *savedFile) error {
	_ = os.Remove(path + tmpSuffix)
	now, err := snapshotFile(path)
	if err != nil {
		return err
	}
	if !holdsOurs(now, ours) {
		return nil
	}
	switch was.Kind {
	case kindSymlink:
		tmp := path + tmpSuffix
		if err := os.Symlink(was.Target, tmp); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			_ = os.Remove(tmp)
			return err
		}
		return syncDir(filepath.Dir(path))
	case kindMissing:
		return os.Remove(path)
	}
	if now.Mode == was.Mode && now.UID == was.UID && now.GID == was.GID && bytes.Equal(now.Content, was.Content) {
		return nil
	}
	return replaceFile(path, was.Content, was)
}

// isReadOnly tells a file that cannot be changed from other failures: a
// read-only file system, or the immutable attribute (EPERM to root).
func isReadOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// writable reports whether path can be replaced, as far as opening it for
// writing tells.
func writable(path string) bool {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		f.Close()
	}
	return replaceable(err)
}

// replaceable reads the error of opening a file for writing. EACCES says only
// that the file is another user's (systemd-resolved's, for a service without
// CAP_DAC_OVERRIDE), not that its place cannot be taken by rename.
func replaceable(err error) bool {
	return !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EPERM)
}

// watchResolvConf is an inotify file with an event for every change of the
// directory of resolv.conf, and of the file itself where it is a mount.
func (h *Host) watchResolvConf() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	const events = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE | unix.IN_DELETE | unix.IN_MOVED_FROM
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(h.system.resolvConf), events); err != nil {
		f.Close()
		return nil, err
	}
	if isMountPoint(h.system.resolvConf) {
		_, _ = unix.InotifyAddWatch(fd, h.system.resolvConf, unix.IN_CLOSE_WRITE)
	}
	return f, nil
}

// resolvconfPath finds the program, Debian's or openresolv; systemd's shim of
// that name is left out.
func (h *Host) resolvconfPath() string {
	for _, path := range h.system.resolvconf {
		real, err := filepath.EvalSymlinks(path)
		if err == nil && filepath.Base(real) != "resolvectl" {
			return path
		}
	}
	return ""
}

// runResolvconf adds or deletes our record. The name begins with "tun", which
// Debian's interface-order puts first; -m 0 -x is openresolv's way to be the
// only one (as wg-quick does; Debian's ignores it).
func runResolvconf(path, action string, o op) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolvconfLimit)
	defer cancel()
	args := []string{action, "tun." + o.Dev}
	var input []byte
	if action == "-a" {
		args = append(args, "-m", "0", "-x")
		input = renderResolvConf(o.Servers, nil)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin = bytes.NewReader(input)
	cmd.WaitDelay = time.Second // a daemon that its hooks start may keep the output open for ever
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if action == "-d" && errors.As(err, new(*exec.ExitError)) {
		return nil // openresolv's answer when it has no such record
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", path, action, err, bytes.TrimSpace(out))
	}
	return nil
}
