package atlanticproxy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// callers are functions of our tests that run a program, by the last part of
// their name, and which argument the program is. Methods of the lab have its node
// first, run of several packages a testing.T.
var callers = map[string]int{"LookPath": 0, "CommandContext": 1, "Command": 1, "run": 1}

// TestToolsAreInstalled: a program that a test or the lab calls must come with a
// package of scripts/deps, or make test is green only where it was written. Under
// make test, PATH holds the programs of those packages and nothing else.
func TestToolsAreInstalled(t *testing.T) {
	if os.Getenv("ATLANTIC_TOOLS") == "" {
		t.Skip("SKIPPED: PATH is this machine's; under make test it is what scripts/deps installs")
	}
	seen := map[string]string{} // where a program is called first
	for _, path := range goFiles(t) {
		ofTests := strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "lab/")
		otherSystem := strings.HasSuffix(path, "_windows_test.go") || strings.HasSuffix(path, "_darwin_test.go")
		if ofTests && !otherSystem {
			programs(t, path, seen)
		}
	}
	if len(seen) < 15 {
		t.Errorf("only %d programs were found: %v", len(seen), seen)
	}
	for program, where := range seen {
		if _, err := exec.LookPath(program); err != nil && !inRoots(t, program) {
			t.Errorf("%s calls %s, which no package of scripts/deps brings: add the package there", where, program)
		}
	}
}

// inRoots reports whether one of scripts/roots has the program, in which tests of
// platform/linux run it.
func inRoots(t *testing.T, program string) bool {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "sbin", "usr/bin", "usr/sbin"} {
		found, _ := filepath.Glob(filepath.Join(cache, "atlantic", "debian-*-*", dir, program))
		if len(found) > 0 {
			return true
		}
	}
	return false
}

var programName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9+._-]*$`)

// programs adds to seen what the calls of callers in a file name literally.
func programs(t *testing.T, path string, seen map[string]string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		of, name := calls(call.Fun)
		at, ok := callers[name]
		if of == "exec" && name == "Command" {
			at = 0
		}
		if !ok || len(call.Args) <= at {
			return true
		}
		if text, ok := call.Args[at].(*ast.BasicLit); ok && text.Kind == token.STRING {
			program, err := strconv.Unquote(text.Value)
			if err == nil && programName.MatchString(program) && seen[program] == "" {
				seen[program] = files.Position(call.Pos()).String()
			}
		}
		return true
	})
}

// calls returns the parts of x.Name or Name.
func calls(fun ast.Expr) (of, name string) {
	switch f := fun.(type) {
	case *ast.Ident:
		return "", f.Name
	case *ast.SelectorExpr:
		of, _ := f.X.(*ast.Ident)
		if of == nil {
			return "", f.Sel.Name
		}
		return of.Name, f.Sel.Name
	}
	return "", ""
}
