//go:build linux || darwin

package localsock

import (
	"fmt"
	"os"
	"path/filepath"
)

// DefaultPath returns where a service that this user starts listens: the
// system's place for root, the user's runtime directory for anybody else.
func DefaultPath() string {
	if os.Geteuid() == 0 {
		return systemPath
	}
	return userPath()
}

// ClientPath returns where a client finds the service: ATLANTIC_SOCKET if it is
// set, otherwise the system's service if there is one, otherwise this user's.
func ClientPath() string {
	if p := os.Getenv(PathVar); p != "" {
		return p
	}
	if _, err := os.Lstat(systemPath); err == nil {
		return systemPath
	}
	return DefaultPath()
}

// userPath is for a service without privileges. Where there is no runtime
// directory (macOS, su) the temporary one must do: Listen checks its owner.
func userPath() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "atlantic", "atlantic.sock")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("atlantic-%d", os.Getuid()), "atlantic.sock")
}
