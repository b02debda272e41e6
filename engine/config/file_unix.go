//go:build unix

package config

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

const openNonblock = syscall.O_NONBLOCK

// checkOwner refuses a file that somebody else may change.
func checkOwner(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s is refused: its owner cannot be told", path)
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is refused: it belongs to user %d, not to root or the service's user (hint: chown root %s)", path, st.Uid, path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is refused: others may write it, mode %04o (hint: chmod go-w %s)", path, info.Mode().Perm(), path)
	}
	return nil
}

// checkSecretFile refuses a secret that everybody may read or change.
func checkSecretFile(path string, info fs.FileInfo) error {
	if err := checkOwner(path, info); err != nil {
		return err
	}
	if info.Mode().Perm()&0o004 != 0 {
		return fmt.Errorf("%s is refused: everybody may read it, mode %04o (hint: chmod 600 %s)", path, info.Mode().Perm(), path)
	}
	return nil
}

func readableByOthers(info fs.FileInfo) bool { return info.Mode().Perm()&0o077 != 0 }

func keepOwner(f *os.File, old fs.FileInfo) {
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid)) // not ours to give: the new file is our own
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
