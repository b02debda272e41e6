package service

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemd itself says whether the unit runs the program that is meant: it
// complains of one that is missing.
func TestUnitRunsOddPaths(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("SKIPPED: no systemd-analyze on this machine (apt-get install systemd)")
	}
	for _, name := range []string{"plain", "with space", "100%n", "$HOME", "{{Path}}", "ünï"} {
		for _, exists := range []bool{true, false} {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(dir, "atlanticd")
			if exists {
				if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			text, err := Unit(program)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "atlanticd.service")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", file).CombinedOutput()
			if valid := err == nil; valid != exists || strings.Contains(text, "{{") {
				t.Errorf("%q, the program is there: %v; systemd says: %v\n%s", name, exists, err, out)
			}
		}
	}
}

func TestUnitIsPackaged(t *testing.T) {
	if !strings.Contains(unit, packaged) {
		t.Errorf("the unit no longer names the program by %q", packaged)
	}
}

func TestUnitRefusesPaths(t *testing.T) {
	for _, name := range []string{`back\slash`, `quo"te`, "apo's", "tab\tbed", "line\nfeed"} {
		if text, err := Unit("/opt/" + name + "/atlanticd"); err == nil {
			t.Errorf("%q: no error, but\n%s", name, text)
		}
	}
}
