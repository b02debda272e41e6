// Package atlanticproxy holds only the test of the repository's own shape.
package atlanticproxy

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/atlanticproxy/atlanticproxy"

// allowed is the table of docs/ARCHITECTURE.md: which of our packages each may
// import itself. A pattern that ends in /... stands for everything below.
var allowed = map[string][]string{
	"app/atlantic":          {"app/..."},
	"app/atlanticd":         {"app/hint", "engine", "engine/api", "engine/apiserver", "engine/config", "platform/..."},
	"app/tray":              {"app/client", "engine/api", "assets"},
	"app/cli":               {"app/client", "app/hint", "app/tray", "engine/api", "engine/config", "engine/proxy", "platform/localsock", "platform/paths", "assets/service"},
	"app/hint":              {},
	"app/client":            {"engine/api", "platform/localsock"},
	"engine":                {"engine/...", "platform", "assets"},
	"engine/api":            {},
	"engine/apiserver":      {"engine/api", "engine/internal/fair", "platform/localsock"},
	"engine/config":         {"engine/proxy", "engine/resolve", "engine/rules", "platform/paths", "assets"},
	"engine/dns":            {"engine/flow", "engine/proxy", "engine/rules"},
	"engine/flow":           {},
	"engine/internal/fair":  {},
	"engine/listener":       {"engine/flow", "engine/internal/fair", "engine/proxy"},
	"engine/netstack":       {"engine/flow", "platform"},
	"engine/proxy":          {},
	"engine/resolve":        {"engine/proxy"},
	"engine/route":          {"engine/flow", "engine/rules", "engine/upstream"},
	"engine/rules":          {"engine/flow", "engine/proxy"},
	"engine/upstream":       {"engine/flow", "engine/proxy", "engine/resolve", "engine/upstream/..."},
	"engine/upstream/h2":    {"engine/flow"},
	"platform":              {},
	"platform/darwin":       {"platform", "platform/..."},
	"platform/linux":        {"platform", "platform/..."},
	"platform/localsock":    {"platform/paths"},
	"platform/paths":        {},
	"platform/physical":     {"platform"},
	"platform/platformtest": {"platform"},
	"platform/windows":      {"platform", "platform/..."},
	"assets":                {},
	"assets/service":        {},
}

// soleImporters are libraries that one package alone may know.
var soleImporters = map[string][]string{
	"gvisor.dev/gvisor":          {"engine/netstack"},
	"fyne.io/systray":            {"app/tray"},
	"github.com/google/nftables": {"platform/linux"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list for %s: %s", goos, ee.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportsPointOneWay(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		seen := 0
		for _, p := range list(t, goos) {
			name := strings.TrimPrefix(p.ImportPath, module+"/")
			may, listed := allowed[name]
			if strings.HasPrefix(name, "lab") || p.ImportPath == module || strings.Contains(name, "/gen") {
				may, listed = []string{"..."}, true
			}
			if !listed {
				t.Errorf("%s: a package that the table does not know: add it to docs/ARCHITECTURE.md and here", name)
				continue
			}
			seen++
			for _, imp := range p.Imports {
				if of, ok := strings.CutPrefix(imp, module+"/"); ok {
					if !matches(may, of) {
						t.Errorf("%s (%s) imports %s, which the table does not allow", name, goos, of)
					}
					continue
				}
				for lib, who := range soleImporters {
					if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(who, name) {
						t.Errorf("%s (%s) imports %s; only %v may", name, goos, imp, who)
					}
				}
			}
			if strings.HasPrefix(name, "engine") || strings.HasPrefix(name, "app/") || strings.HasPrefix(name, "platform") {
				for _, dep := range p.Deps {
					if strings.HasPrefix(dep, module+"/lab") {
						t.Errorf("%s (%s) depends on %s: the lab is for tests only", name, goos, dep)
					}
				}
			}
			if strings.HasPrefix(name, "engine") {
				for _, dep := range p.Deps {
					for _, os := range []string{"linux", "darwin", "windows"} {
						if dep == module+"/platform/"+os {
							t.Errorf("%s (%s) depends on a concrete platform, %s", name, goos, dep)
						}
					}
				}
			}
		}
		if seen < 15 {
			t.Errorf("%s: only %d packages were looked at", goos, seen)
		}
	}
}

func matches(may []string, name string) bool {
	for _, m := range may {
		if below, ok := strings.CutSuffix(m, "..."); ok && strings.HasPrefix(name+"/", below) || m == name {
			return true
		}
	}
	return false
}

// goFiles are the paths of all our files of Go, from the repository's root.
func goFiles(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".go") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil || len(paths) < 100 {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	return paths
}

// No room so crowded that a newcomer cannot read it in one go.
func TestFilesStayReadable(t *testing.T) {
	for _, f := range goFiles(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), "\n"); n > 500 {
			t.Errorf("%s has %d lines; 500 are the limit", f, n)
		}
	}
}

func TestGofmt(t *testing.T) {
	bad, err := exec.Command("gofmt", append([]string{"-l"}, goFiles(t)...)...).CombinedOutput()
	if err != nil || len(bad) > 0 {
		t.Errorf("gofmt -l: %s (%v)", bad, err)
	}
}
