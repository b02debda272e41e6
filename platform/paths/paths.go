// Package paths says once, for each system, where AtlanticProxy's
// configuration and state are, and whether somebody else could put another
// file there.
//
//	            Linux                        macOS                              Windows
//	Config      /etc/atlantic/atlantic.toml  /Library/Application Support/…     %ProgramData%\Atlantic\atlantic.toml
//	State       /var/lib/atlantic            …/Atlantic/state                   %ProgramData%\Atlantic\state
//
// The socket's place is platform/localsock's. It imports nothing of ours; app,
// engine/config and platform/localsock import it.
package paths

import (
	"fmt"
	"os"
	"path/filepath"
)

// A DirError says that others could replace what is in a directory.
type DirError struct {
	Dir  string
	Why  string // "user 1000 owns it", "everybody may write in it"
	Hint string // what mends it
}

func (e *DirError) Error() string { return fmt.Sprintf("%s: %s", e.Dir, e.Why) }

// CheckDir refuses, with a *DirError, a directory in which somebody other than
// root, this process's user and the users in also could put another file in
// place of the one that is there: one of theirs, one that they may write in (a
// sticky one apart, such as /tmp), and one below such a directory. Symbolic
// links in dir are followed, and where they stand is looked at too. On Windows,
// where access lists decide, it accepts everything.
func CheckDir(dir string, also ...int) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return err
	}
	for _, start := range []string{abs, real} {
		for d := start; ; d = filepath.Dir(d) {
			info, err := os.Stat(d)
			if err != nil {
				return err
			}
			if err := checkDir(d, info, also); err != nil {
				return err
			}
			if d == filepath.Dir(d) {
				break
			}
		}
	}
	return nil
}
