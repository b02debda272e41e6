package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPackageVersion(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2": "1.2", "v1.2.3-rc.1": "1.2.3~rc.1", "v1.2.3-4-g0123abc": "1.2.3+4.g0123abc",
		"v1.2.3-4-g0123abc-dirty": "1.2.3+4.g0123abc.dirty", "v1.2.3-rc.1-4-g0123abc": "1.2.3~rc.1+4.g0123abc", "v0.0.0-304-g0123abc-dirty.20261127T101500Z": "0.0.0+304.g0123abc.dirty.20261127T101500Z",
		"0123abc": "0.0.0+0123abc", "0123abc-dirty": "0.0.0+0123abc.dirty", "dev": "0.0.0+dev", "a b/../c": "0.0.0+a.b....c",
	} {
		if got := packageVersion(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// dpkg itself is asked whether the versions come in the right order.
func TestPackageVersionOrder(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("SKIPPED: no dpkg")
	}
	order := []string{"v0.0.0-99-gfff", "v0.0.0-304-g0aa", "v0.0.0-304-g0aa-dirty.20261127T101500Z", "v0.0.0-304-g0aa-dirty.20261127T111500Z",
		"v0.0.0-305-g000", "v1.2.3-rc.1", "v1.2.3-rc.2", "v1.2.3", "v1.2.3-4-g0123abc", "v1.2.3-12-gfff", "v1.2.4", "v1.10.0"}
	for i := range len(order) - 1 {
		a, b := packageVersion(order[i]), packageVersion(order[i+1])
		if err := exec.Command("dpkg", "--compare-versions", a, "lt", b).Run(); err != nil {
			t.Errorf("dpkg: %s is not before %s", a, b)
		}
	}
}

// standIn builds two tiny static programs for the architecture.
func standIn(t *testing.T, arch string, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), src)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return dir
}

func testOptions(t *testing.T, arch string) options {
	return options{version: "v1.2.3", bin: standIn(t, arch, "atlantic", "atlanticd"), icons: "../assets/icons", changes: "../CHANGELOG.md", unit: "../assets/service/atlanticd.service",
		out: t.TempDir(), formats: "deb,rpm", mtime: time.Unix(1_700_000_000, 0).UTC()}
}

func TestBuild(t *testing.T) {
	for arch, want := range map[string][]string{
		"amd64": {"atlantic-1.2.3-1.x86_64.rpm", "atlantic_1.2.3_amd64.deb"},
		"arm64": {"atlantic-1.2.3-1.aarch64.rpm", "atlantic_1.2.3_arm64.deb"},
	} {
		o := testOptions(t, arch)
		var out strings.Builder
		if err := run(o, &out); err != nil {
			t.Fatal(err)
		}
		var made []string
		for path := range strings.FieldsSeq(out.String()) {
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
			made = append(made, filepath.Base(path))
		}
		slices.Sort(made)
		if !slices.Equal(made, want) {
			t.Errorf("made %v, want %v", made, want)
		}
	}
}

func TestBuildIsReproducible(t *testing.T) {
	o := testOptions(t, "amd64")
	var first map[string]string
	for range 2 {
		o.out = t.TempDir()
		if err := run(o, &strings.Builder{}); err != nil {
			t.Fatal(err)
		}
		sums := map[string]string{}
		entries, err := os.ReadDir(o.out)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(o.out, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			sums[e.Name()] = string(b)
		}
		for name, b := range first {
			if sums[name] != b {
				t.Errorf("%s differs between two builds", name)
			}
		}
		first = sums
	}
}

func TestBuildErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*options)
		want   string
	}{
		"no binaries": {func(o *options) { o.bin = t.TempDir() }, "make build makes it"},
		"not a binary": {func(o *options) {
			o.bin = t.TempDir()
			for _, n := range []string{"atlantic", "atlanticd"} {
				os.WriteFile(filepath.Join(o.bin, n), []byte("#!/bin/sh\n"), 0o755)
			}
		}, "make build makes it"},
		"no icons":     {func(o *options) { o.icons = t.TempDir() }, "no app-color"},
		"no unit":      {func(o *options) { o.unit = "/nonexistent" }, "/nonexistent"},
		"no changelog": {func(o *options) { o.changes = "/nonexistent" }, "/nonexistent"},
		"format":       {func(o *options) { o.formats = "msi" }, "msi"},
		"mixed": {func(o *options) {
			arm := standIn(t, "arm64", "atlanticd")
			if err := os.Rename(filepath.Join(arm, "atlanticd"), filepath.Join(o.bin, "atlanticd")); err != nil {
				t.Fatal(err)
			}
		}, "the other binary for amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t, "amd64")
			tc.change(&o)
			err := run(o, &strings.Builder{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to say %q", err, tc.want)
			}
			if left, _ := os.ReadDir(o.out); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}
