//go:build unix

package paths

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// State is where the service keeps what it must remember: the system's place
// for root, the user's own otherwise.
func State() string {
	if os.Geteuid() == 0 {
		return systemState
	}
	if d := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "atlantic")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, ".local", "state", "atlantic")
}

// Config is where the service looks for its configuration.
func Config() string { return systemConfig }

func checkDir(dir string, info fs.FileInfo, also []int) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return &DirError{dir, "its owner cannot be told", "choose another directory"}
	}
	if uid := int(st.Uid); uid != 0 && uid != os.Geteuid() && !slices.Contains(also, uid) {
		return &DirError{dir, fmt.Sprintf("user %d owns it, and could replace what is in it", uid), "chown root " + dir}
	}
	perm := info.Mode().Perm()
	if info.Mode()&fs.ModeSticky != 0 { // nobody there removes or renames what is another user's
		return nil
	}
	if perm&0o002 != 0 {
		return &DirError{dir, "everybody may write in it", "chmod o-w " + dir}
	}
	// A group of root's, or the private group that many systems give each user.
	if gid := int(st.Gid); perm&0o020 != 0 && gid != 0 && gid != os.Getegid() && !slices.Contains(also, gid) {
		return &DirError{dir, fmt.Sprintf("group %d may write in it", gid), "chmod g-w " + dir}
	}
	return nil
}
