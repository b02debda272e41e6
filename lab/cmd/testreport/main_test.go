package main

import (
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
		{"says why it skipped", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: SKIPPED: not root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`,
			[]string{"SKIPPED 1: not root\n    TestA\n", "0 tests passed"}, nil, false},
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
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			r := report{out: &out}
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
