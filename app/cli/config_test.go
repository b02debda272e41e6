package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// TestConfigSetWithoutPermission sets a value where only others may write.
func TestConfigSetWithoutPermission(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: not Linux: no way to give up permissions")
	}
	dir, err := os.MkdirTemp("", "atl") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o755); os.RemoveAll(dir) })
	program := filepath.Join(dir, "atlantic")
	copyFile(t, os.Args[0], program)
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"atlantic.toml", "new/atlantic.toml"} {
		line := []string{program, "config", "set", "tun.mtu", "1400", "--file", filepath.Join(dir, file)}
		if os.Getuid() == 0 {
			line = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, line...)
		}
		out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitPermission {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}
