package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kindFile    = "file"
	kindSymlink = "symlink"
	kindMissing = "missing"

	tmpSuffix       = ".atlantic"
	resolvconfLimit = 10 * time.Second
	ownerPause      = time.Second     // for another program to write resolv.conf, when it may be doing so already
	othersLimit     = 3 * time.Second // for another program to write resolv.conf, when it has been told
)

// savedFile is what was found in the place of resolv.conf.
type savedFile struct {
	Kind    string `json:"kind"`
	Target  string `json:"target,omitempty"` // of a symlink, as written
	Mode    uint32 `json:"mode,omitempty"`   // permission bits
	UID     int    `json:"uid,omitempty"`
	GID     int    `json:"gid,omitempty"`
	Content []byte `json:"content,omitempty"` // through the symlink, if it leads anywhere
	Sum     uint32 `json:"sum,omitempty"`     // CRC-32 (IEEE) of Content, of a symlink: it shows edits made while a file stands in its place
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
	if s.Content, err = io.ReadAll(io.LimitReader(f, maxOurs+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if text, _, _ := withoutOurs(s.Content, nil); len(text) > maxResolvConf {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxResolvConf)
	}
	if s.Kind == kindSymlink {
		s.Sum = crc32.ChecksumIEEE(s.Content)
	}
	return s, nil
}

// putFile makes content that of path. A file is written in place: it stays the
// same inode, with its owner, mode, extended attributes, ACL, hard links and
// bind mounts. Where there is no file yet, or one that only its owner may write
// (a service without CAP_DAC_OVERRIDE), a new one takes the place by rename.
func putFile(path string, content []byte) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		if err = writeInPlace(path, content); !errors.Is(err, unix.EACCES) {
			return err
		}
		return replaceFile(path, content, &st)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	return replaceFile(path, content, nil)
}

// writeInPlace needs no more room on the disk than it makes sure of beforehand:
// a full one must not leave half a file.
func writeInPlace(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, max(int64(len(content)), 1))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = nil // a file system that cannot
	}
	if err == nil {
		_, err = f.WriteAt(content, 0)
	}
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// replaceFile puts a new file in place of path, atomically, with the mode, owner
// and extended attributes of what is there, which like is of; nil means nothing
// of a file.
func replaceFile(path string, content []byte, like *unix.Stat_t) error {
	mode, uid, gid := uint32(0o644), 0, 0
	if like != nil {
		mode, uid, gid = like.Mode&0o7777, int(like.Uid), int(like.Gid)
	}
	tmp := path + tmpSuffix
	_ = os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
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
	if err == nil && like != nil {
		copyAttributes(path, int(f.Fd()))
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
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// copyAttributes gives fd the extended attributes of path, ACLs among them, as
// far as this process may set them.
func copyAttributes(path string, fd int) {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if n, err := unix.Lgetxattr(path, name, value); err == nil {
			_ = unix.Fsetxattr(fd, name, value[:n], 0)
		}
	}
}

// putBack makes path what former is. What was a link is one again; edits that
// others have made in the file that stood in its place go to where it leads, as
// they would have without us, unless that has changed as well: then they stay
// in a file.
func putBack(path string, former *savedFile) error {
	_ = os.Remove(path + tmpSuffix)
	switch {
	case former.Kind == kindMissing && len(bytes.TrimSpace(former.Content)) == 0:
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case former.Kind == kindSymlink:
		to := linkedPath(path, former.Target)
		if former.edited() {
			there, err := os.ReadFile(to)
			if err != nil || crc32.ChecksumIEEE(there) != former.Sum || writeInPlace(to, former.Content) != nil {
				break
			}
		}
		return putLink(path, former.Target)
	}
	return putFile(path, former.Content)
}

func putLink(path, target string) error {
	tmp := path + tmpSuffix
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// linkedPath is where a link at path with that target leads.
func linkedPath(path, target string) string {
	if filepath.IsAbs(target) {
		return target
	}
	return filepath.Join(filepath.Dir(path), target)
}

// linked is what a link in place of resolv.conf would lead to.
func (h *Host) linked(target string) ([]byte, error) {
	s, err := snapshotFile(linkedPath(h.system.resolvConf, target))
	if err != nil {
		return nil, err
	}
	return s.Content, nil
}

func isMountPoint(path string) bool {
	var file, dir unix.Stat_t
	return unix.Stat(path, &file) == nil && unix.Stat(filepath.Dir(path), &dir) == nil && file.Dev != dir.Dev
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
	// Where the file is a link, or systemd-resolved's, the servers and domains of
	// the network are written elsewhere.
	behind, _ := filepath.EvalSymlinks(h.system.resolvConf)
	for _, path := range []string{behind, h.system.resolvedConf} {
		if dir := filepath.Dir(path); path != "" && dir != filepath.Dir(h.system.resolvConf) && dir != "/run" { // where everybody writes
			_, _ = unix.InotifyAddWatch(fd, dir, events)
		}
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

// record is what resolvconf is given: our servers, with the search list and
// options of the machine, which openresolv's -x would leave out.
func record(o op) []byte {
	var b bytes.Buffer
	for _, a := range o.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	var former []byte
	if o.File != nil {
		former = o.File.Content
	}
	for line := range bytes.Lines(former) {
		switch fields := bytes.Fields(line); {
		case len(fields) < 2:
		case slices.Contains([]string{"search", "domain", "options"}, string(fields[0])):
			b.Write(append(bytes.Join(fields, []byte(" ")), '\n'))
		}
	}
	return b.Bytes()
}

// runResolvconf adds (-a) or deletes (-d) our record, or has the file written
// again (-u). The name begins with "tun", which
// Debian's interface-order puts first; -m 0 -x is openresolv's way to be the
// only one (as wg-quick does; Debian's ignores it).
func runResolvconf(path, action string, o op) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolvconfLimit)
	defer cancel()
	args := []string{action}
	var input []byte
	switch action {
	case "-a":
		args = append(args, "tun."+o.Dev, "-m", "0", "-x")
		input = record(o)
	case "-d":
		args = append(args, "tun."+o.Dev)
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
