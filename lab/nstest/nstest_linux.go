package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// env names the test that a child was started for.
const env = "ATLANTIC_TEST_INSIDE"

// Inside runs the calling test once more in a network and a mount namespace of
// its own, with nothing but a loopback that is down, and reports whether this is
// that second run. Where it is not, the test has ended as its child did: it
// returns false after a success, and stops the test after a failure or a skip.
// Subtests that the child skipped are skipped here too.
//
//	if !nstest.Inside(t) {
//		return
//	}
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(env) == t.Name() {
		// What is mounted here must not reach the machine.
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatalf("make mounts private: %v", err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root: namespaces need it")
	}
	t.Parallel()
	out, err := child(t)
	result := parse(t.Name(), out)
	switch {
	case err != nil || result.own == "":
		t.Fatalf("in the namespace: %v\n%s", err, out)
	case result.own == "SKIP":
		t.Skip(result.reasons[t.Name()])
	}
	if testing.Verbose() {
		t.Logf("in the namespace:\n%s", result.log)
	}
	for _, name := range result.subtests {
		t.Run(name, func(t *testing.T) { t.Skip(result.reasons[t.Name()]) })
	}
	return false
}

// child runs the calling test alone and returns what it printed.
func child(t *testing.T) (string, error) {
	t.Helper()
	args := []string{"-test.v", "-test.run=" + pattern(t.Name()), fmt.Sprintf("-test.short=%v", testing.Short())}
	if end, ok := t.Deadline(); ok {
		// A little less, so that it is the child who says where it hangs.
		args = append(args, fmt.Sprintf("-test.timeout=%v", time.Until(end)*9/10))
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), env+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	// Pdeathsig means the death of the thread that forked, and threads end with
	// goroutines that were locked to them (prctl(2), PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// pattern matches the test of that name alone.
func pattern(name string) string {
	levels := strings.Split(name, "/")
	for i, l := range levels {
		levels[i] = "^" + regexp.QuoteMeta(l) + "$"
	}
	return strings.Join(levels, "/")
}

// result is what `go test -v` printed of one test.
type result struct {
	own      string            // PASS or SKIP; "" if it did not end so
	subtests []string          // that were skipped, without the test's name
	reasons  map[string]string // why, by full name
	log      string            // without the marks of tests, which test2json would take for the parent's
}

var (
	switched = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)$`)
	ended    = regexp.MustCompile(`^ *--- (PASS|SKIP|FAIL): (\S+) \(`)
	logged   = regexp.MustCompile(`^ +\S+\.go:[0-9]+: (.*)$`)
)

// parse reads the output of test and its subtests. A line that a test logs
// comes after the line that names the test.
func parse(test, output string) result {
	r := result{reasons: map[string]string{}}
	last, current := map[string]string{}, ""
	for line := range strings.Lines(output) {
		line = strings.TrimSuffix(line, "\n")
		if m := switched.FindStringSubmatch(line); m != nil {
			current = m[1]
			continue
		}
		if m := logged.FindStringSubmatch(line); m != nil {
			last[current] = m[1]
		}
		if m := ended.FindStringSubmatch(line); m != nil {
			how, name := m[1], m[2]
			if how == "SKIP" {
				if r.reasons[name] = last[name]; last[name] == "" {
					r.reasons[name] = "no reason given"
				}
				if sub, ok := strings.CutPrefix(name, test+"/"); ok {
					r.subtests = append(r.subtests, sub)
				}
			}
			if name == test && how != "FAIL" {
				r.own = how
			}
			continue
		}
		r.log += line + "\n"
	}
	return r
}
