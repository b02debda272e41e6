// Command testreport reads what test scripts print, `go test -json` among it, and
// prints what a person wants to see: each package's result, the whole output of
// what failed and, at the end, what was skipped and why. Plain `go test` keeps
// quiet about skipped tests; with -v it says too much to be read.
//
//	go test -json ./... | testreport [-v PACKAGES] [-allow FILE]
//
// A test that one run skips and another passes, as those do that the race detector
// would disturb, was not skipped. Lines that are no events are copied; those that
// begin with "== SKIPPED: " (scripts/common) count as skips.
//
// -v also prints each test, and its first level of subtests, as it ends, for
// packages that match the regular expression. -allow names a file of reasons, a
// regular expression on each line: a skip with any other reason is a failure. The
// exit code is 1 if anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	verbose := flag.String("v", "", "print each test of these `packages` as it ends")
	allow := flag.String("allow", "", "fail on skips with a reason that this `file` does not list")
	flag.Parse()
	r, err := newReport(os.Stdout, *verbose, *allow)
	if err == nil {
		err = r.read(os.Stdin)
		r.summary()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || r.failed {
		os.Exit(1)
	}
}

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// name is one test's.
type name struct{ pkg, test string }

type report struct {
	out     io.Writer
	verbose *regexp.Regexp   // nil: no package
	allowed []*regexp.Regexp // reasons to skip; nil: all

	failed  bool
	passed  map[name]bool
	skipped map[name]string   // why
	output  map[name][]string // lines of tests that have not ended
}

// newReport returns a report for packages that match verbose, "" being none, and
// the reasons of the file allow, "" being all.
func newReport(out io.Writer, verbose, allow string) (r *report, err error) {
	r = &report{out: out, passed: map[name]bool{}, skipped: map[name]string{}, output: map[name][]string{}}
	if verbose != "" {
		if r.verbose, err = regexp.Compile(verbose); err != nil {
			return nil, err
		}
	}
	if allow == "" {
		return r, nil
	}
	text, err := os.ReadFile(allow)
	if err != nil {
		return nil, err
	}
	r.allowed = []*regexp.Regexp{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		reason, err := regexp.Compile("^(?:" + line + ")$")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", allow, err)
		}
		r.allowed = append(r.allowed, reason)
	}
	return r, nil
}

const scriptSkipped = "== SKIPPED: "

// read takes events until in ends; a line that is none is copied.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in) // not a Scanner: a test may print lines of any length
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) != nil:
			fmt.Fprintf(r.out, "%s", line)
			if why, ok := strings.CutPrefix(string(line), scriptSkipped); ok {
				what, why, _ := strings.Cut(strings.TrimSpace(why), ": ")
				r.skipped[name{test: what}] = why
			}
		case e.Test == "":
			r.ofPackage(e)
		default:
			r.ofTest(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) ofPackage(e event) {
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		if e.Output != "PASS\n" && !strings.Contains(e.Output, "[no test files]") {
			fmt.Fprint(r.out, e.Output)
		}
	case "build-fail", "fail":
		r.failed = true
		for n, lines := range r.output { // a panic or a timeout: these never ended
			if n.pkg == e.Package {
				fmt.Fprint(r.out, strings.Join(lines, ""))
				delete(r.output, n)
			}
		}
	}
}

func (r *report) ofTest(e event) {
	n := name{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.output[n] = append(r.output[n], e.Output)
		return
	case "pass":
		r.passed[n] = true
	case "skip":
		r.skipped[n] = reason(r.output[n])
	case "fail":
		r.failed = true
		fmt.Fprint(r.out, strings.Join(r.output[n], ""))
	default: // run, pause, cont
		return
	}
	delete(r.output, n)
	if r.verbose != nil && r.verbose.MatchString(e.Package) && strings.Count(e.Test, "/") < 2 {
		fmt.Fprintf(r.out, "%-4s  %s  %.1fs\n", e.Action, e.Test, e.Elapsed)
	}
}

var logged = regexp.MustCompile(`^ *[^ ]+\.go:[0-9]+: (?:SKIPPED: )?(.*)\n$`)

// reason is what a skipped test said last.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		if m := logged.FindStringSubmatch(line); m != nil {
			return m[1]
		}
	}
	return "no reason given"
}

// summary prints what was skipped nowhere but here, by reason, and judges it.
func (r *report) summary() {
	why := map[string][]string{}
	for n, reason := range r.skipped {
		if !r.passed[n] {
			why[reason] = append(why[reason], n.test)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		tests := slices.Sorted(slices.Values(why[reason]))
		fmt.Fprintf(r.out, "SKIPPED %d: %s\n", len(tests), reason)
		for _, t := range tests[:min(len(tests), 5)] {
			fmt.Fprintf(r.out, "    %s\n", t)
		}
		if more := len(tests) - 5; more > 0 {
			fmt.Fprintf(r.out, "    and %d more\n", more)
		}
		if r.allowed != nil && !slices.ContainsFunc(r.allowed, func(a *regexp.Regexp) bool { return a.MatchString(reason) }) {
			r.failed = true
			fmt.Fprintf(r.out, "    a failure: no reason that may skip a test here\n")
		}
	}
	fmt.Fprintf(r.out, "%d tests passed\n", len(r.passed))
	if r.failed {
		fmt.Fprintln(r.out, "FAILED")
	}
}
