// Command testreport reads `go test -json` and prints what a person wants to
// see: each package's result, the whole output of what failed and, at the end,
// what was skipped and why. Plain `go test` keeps quiet about skipped tests;
// with -v it says too much to be read.
//
//	go test -json ./... | testreport [-v]
//
// -v also prints each test and its first level of subtests as they end. The exit
// code is 1 if anything failed.
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
	verbose := flag.Bool("v", false, "print each test as it ends")
	flag.Parse()
	r := report{out: os.Stdout, verbose: *verbose}
	err := r.read(os.Stdin)
	r.summary()
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

// report is ready with out set.
type report struct {
	out     io.Writer
	verbose bool

	passed  int
	failed  bool
	skipped map[string][]string // tests, by reason
	output  map[name][]string   // lines of tests that have not ended
}

// read takes events until r ends; a line that is none is copied.
func (r *report) read(in io.Reader) error {
	r.skipped, r.output = map[string][]string{}, map[name][]string{}
	lines := bufio.NewReader(in) // not a Scanner: a test may print lines of any length
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		switch {
		case len(line) == 0:
		case json.Unmarshal(line, &e) != nil:
			fmt.Fprintf(r.out, "%s", line)
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
		r.passed++
	case "skip":
		why := reason(r.output[n])
		r.skipped[why] = append(r.skipped[why], e.Test)
	case "fail":
		r.failed = true
		fmt.Fprint(r.out, strings.Join(r.output[n], ""))
	default: // run, pause, cont
		return
	}
	delete(r.output, n)
	if r.verbose && strings.Count(e.Test, "/") < 2 {
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

func (r *report) summary() {
	for _, why := range slices.Sorted(maps.Keys(r.skipped)) {
		tests := r.skipped[why]
		fmt.Fprintf(r.out, "SKIPPED %d: %s\n", len(tests), why)
		for _, t := range tests[:min(len(tests), 5)] {
			fmt.Fprintf(r.out, "    %s\n", t)
		}
		if more := len(tests) - 5; more > 0 {
			fmt.Fprintf(r.out, "    and %d more\n", more)
		}
	}
	fmt.Fprintf(r.out, "%d tests passed\n", r.passed)
}
