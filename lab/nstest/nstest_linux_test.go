package nstest

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const sampleEnv = "ATLANTIC_TEST_SAMPLE"

// TestSample is what TestInside starts, once for each case.
func TestSample(t *testing.T) {
	how := os.Getenv(sampleEnv)
	if how == "" || !Inside(t) {
		return
	}
	if all, err := net.Interfaces(); err != nil || len(all) != 1 {
		t.Fatalf("interfaces of the namespace: %v, %v", all, err)
	}
	switch how {
	case "skip":
		t.Log("chatter")
		t.Skip("SKIPPED: no such program")
	case "skip below":
		t.Run("a b", func(t *testing.T) {
			t.Run("c", func(t *testing.T) { t.Skip("SKIPPED: another kernel") })
			t.Run("d", func(*testing.T) {})
		})
	case "fail":
		t.Error("wrong")
	case "fail below":
		t.Run("a", func(t *testing.T) { t.Error("wrong") })
	case "exit":
		os.Exit(0) // not a success: the test has not ended
	case "panic":
		panic("wrong")
	}
}

// A test ends as its child does. 27 November 2026: the child's skip was a
// failure, so `make test` failed wherever NetworkManager was not installed.
func TestInside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: namespaces need it")
	}
	for how, want := range map[string]struct {
		ok    bool
		lines []string
	}{
		"pass":       {true, []string{"--- PASS: TestSample ("}},
		"skip":       {true, []string{"--- SKIP: TestSample (", ": SKIPPED: no such program\n"}},
		"skip below": {true, []string{"--- PASS: TestSample (", "--- SKIP: TestSample/a_b/c (", ": SKIPPED: another kernel\n"}},
		"fail":       {false, []string{"--- FAIL: TestSample (", "wrong"}},
		"fail below": {false, []string{"--- FAIL: TestSample (", "--- FAIL: TestSample/a (", "wrong"}},
		"exit":       {false, []string{"--- FAIL: TestSample ("}},
		"panic":      {false, []string{"--- FAIL: TestSample (", "panic: wrong"}},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestSample$", "-test.v")
			cmd.Env = append(os.Environ(), sampleEnv+"="+how)
			out, err := cmd.CombinedOutput()
			if (err == nil) != want.ok {
				t.Errorf("%v\n%s", err, out)
			}
			for _, line := range want.lines {
				if !strings.Contains(string(out), line) {
					t.Errorf("no %q in\n%s", line, out)
				}
			}
		})
	}
}
