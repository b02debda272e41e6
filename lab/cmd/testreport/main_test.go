package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	tests := []struct {
		name, in  string
		want, not []string
		failed    bool
	}{
		{"passes quietly", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}`,
			[]string{"ok  \tp", "1 tests passed"}, []string{"chatter", "PASS", "SKIPPED"}, false},
		{"what another run passes was not skipped", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: the race detector allocates\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}`,
			[]string{"1 tests passed"}, []string{"SKIPPED", "race"}, false},
		{"a skip that is allowed", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: SKIPPED: another kernel: 6.1\n"}
{"Action":"skip","Package":"p","Test":"TestA"}`,
			[]string{"SKIPPED 1: another kernel: 6.1\n    TestA\n"}, []string{"a failure"}, false},
		{"a script's skip", "== SKIPPED: staticcheck: it cannot be installed\n",
			[]string{"SKIPPED 1: it cannot be installed\n    staticcheck\n"}, nil, true},
		{"says why it skipped", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: SKIPPED: not root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`,
			[]string{"SKIPPED 1: not root\n    TestA\n    a failure", "0 tests passed\nFAILED\n"}, nil, true},
		{"prints a failure whole", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`,
			[]string{"got 1, want 2"}, nil, true},
		{"a panic ends a test without a result", `
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}
{"Action":"fail","Package":"p"}`,
			[]string{"panic: boom"}, nil, true},
		{"a package that does not build", `
{"ImportPath":"p","Action":"build-output","Output":"x.go:1: undefined: y\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"fail","Package":"p"}`,
			[]string{"undefined: y"}, nil, true},
		{"what is no event is copied", "go: downloading\n", []string{"go: downloading\n"}, nil, false},
	}
	allow := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(allow, []byte("# those of this test\n\nanother kernel.*\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			r, err := newReport(&out, "", allow)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.read(strings.NewReader(strings.TrimPrefix(tc.in, "\n"))); err != nil {
				t.Fatal(err)
			}
			r.summary()
			if r.failed != tc.failed {
				t.Errorf("failed: %v", r.failed)
			}
			for _, s := range tc.want {
				if !strings.Contains(out.String(), s) {
					t.Errorf("no %q in %q", s, out.String())
				}
			}
			for _, s := range tc.not {
				if strings.Contains(out.String(), s) {
					t.Errorf("%q in %q", s, out.String())
				}
			}
		})
	}
}
