//go:build unix

package atlanticproxy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fakeGo answers as an older Go does. The real one then cannot read go.mod.
const fakeGo = `#!/bin/sh
case $1 in
version) echo "go version $VERSION linux/amd64" ;;
env) echo local ;;
*) echo "built" ;;
esac
`

// Whoever has a Go that is too old is told so, and which one is needed.
func TestGoTooOld(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(fakeGo), 0o755); err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, need, _ := strings.Cut(string(mod), "\ngo ")
	need, _, _ = strings.Cut(need, "\n")
	for version, want := range map[string]string{
		"go1.19.8":       "Go 1.19.8 is too old",
		"go1.26rc1":      "Go 1.26 is too old",
		"go1.9":          "Go 1.9 is too old",
		"go" + need:      "build with Go " + need,
		"go1.100":        "build with Go 1.100",
		"devel go1.27-a": "build with Go 1.27",
		"":               "is too old",
	} {
		cmd := exec.Command("bash", "scripts/build", "v0")
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "VERSION="+version)
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), want) || strings.Contains(want, "old") != (err != nil) {
			t.Errorf("%q: %v\n%s", version, err, out)
		}
		if err != nil && !strings.Contains(string(out), need+" or later") {
			t.Errorf("%q: does not say what is needed:\n%s", version, out)
		}
	}
}

// What root builds in somebody's checkout is his: `make` after `sudo make run`.
func TestRootGivesBack(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: not root: nothing to give back")
	}
	const owner = 12345
	dir := t.TempDir()
	made := filepath.Join(dir, "bin", "made")
	outside := filepath.Join(t.TempDir(), "outside")
	for _, err := range []error{
		os.Chown(dir, owner, owner), os.Mkdir(filepath.Join(dir, "bin"), 0o755),
		os.WriteFile(made, nil, 0o644), os.WriteFile(outside, nil, 0o644), os.Symlink(outside, filepath.Join(dir, "bin", "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	common, err := filepath.Abs("scripts/common")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", ". "+common+" && give_back bin")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for path, want := range map[string]uint32{made: owner, filepath.Dir(made): owner, outside: 0} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%s belongs to %d, not %d", path, got, want)
		}
	}
}
