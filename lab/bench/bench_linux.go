package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
)

// Options of Run.
type Options struct {
	Atlanticd string   // the service's binary
	Rows      []string // names from Rows; nil for all
	// Upstreams restricts rows that have several kinds to these: socks5, connect,
	// connect-in-tls, http2, and danted, tinyproxy, squid, apache2; nil for all.
	Upstreams []string
	// Quick makes every row a matter of seconds: it shows that the row works,
	// its figures mean nothing.
	Quick     bool
	SoakFlows int
	SoakTime  time.Duration
	// Benchmarks is a file with the output of go test -bench, for the cost of a
	// choice and of a rule match; "" for none.
	Benchmarks string
	// SideBySide is a file with the results of a harness of system-wide proxies,
	// "candidate metric value" lines; "" for none.
	SideBySide string
	Command    string    // as the user gave it, for the report
	Progress   io.Writer // a line for each step; nil for none
}

// row is one question, and how it is answered.
type row struct {
	name, about string
	run         func(*runner, context.Context) error
}

func rows() []row {
	return []row{
		{"hot", "single functions, from the output of go test -bench", (*runner).hot},
		{"side-by-side", "ours beside other programs, from a harness's results", (*runner).sideBySide},
		{"first-byte", "first byte of a fresh connection on a 20 ms path, in round trips", (*runner).firstByte},
		{"reuse", "flows without a new handshake in their path, browsing-like load", (*runner).reuse},
		{"added", "what we add to a request, against an app that speaks to the proxy itself", (*runner).added},
		{"memory", "resident memory idle and with up to 50,000 connections", (*runner).memory},
		{"peers-real", "through dante, tinyproxy, squid and Apache", (*runner).peersReal},
		{"hls", "a video player on a lossy path", (*runner).hls},
		{"mixed", "a call beside a video and a download", (*runner).mixed},
		{"growth", "how the cost grows with flows, upstreams and rules", (*runner).growth},
		{"soak", "many flows over a long time", (*runner).soak},
	}
}

// Rows lists the rows' names, and what each is about.
func Rows() [][2]string {
	var all [][2]string
	for _, r := range rows() {
		all = append(all, [2]string{r.name, r.about})
	}
	return all
}

// runner is one run of some rows.
type runner struct {
	Options
	Report
	files int // descriptors that a process may have
}

// Run measures. A row that fails is in Report.Missing and in the error; the
// others are measured all the same.
func Run(ctx context.Context, opt Options) (*Report, error) {
	r := &runner{Options: opt}
	for _, name := range opt.Rows {
		if !slices.ContainsFunc(rows(), func(w row) bool { return w.name == name }) {
			return nil, fmt.Errorf("no such row: %q", name)
		}
	}
	var err error
	if r.files, err = raiseLimit(); err != nil {
		return nil, err
	}
	r.Report.Command, r.Date = opt.Command, time.Now().UTC().Format(time.RFC3339)
	r.Commit, r.System = commit(), system()
	var errs []error
	for _, w := range rows() {
		if len(opt.Rows) > 0 && !slices.Contains(opt.Rows, w.name) {
			continue
		}
		r.show("== %s: %s", w.name, w.about)
		if err := w.run(r, ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w.name, err))
			r.Missing = append(r.Missing, fmt.Sprintf("%s: %v", w.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return &r.Report, errors.Join(errs...)
}

func (r *runner) show(format string, args ...any) {
	if r.Progress != nil {
		fmt.Fprintf(r.Progress, time.Now().Format("15:04:05 ")+format+"\n", args...)
	}
}

// pick is full, or quick where that is wanted.
func pick[T any](r *runner, full, quick T) T {
	if r.Quick {
		return quick
	}
	return full
}

// stage builds a lab for a row; it serves the row alone.
func (r *runner) stage(opt lab.Options) (*stage, error) {
	procs := runtime.NumCPU()
	if opt.Impair {
		// More running threads than processors, so that the impairment box's
		// are never kept waiting for the servers' goroutines.
		procs = max(8, procs)
	}
	runtime.GOMAXPROCS(procs)
	return r.newStage(opt)
}

// raiseLimit makes room for as many descriptors as this process may have, for
// itself and for those that it starts, and returns how many.
func raiseLimit() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if b, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if most, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil {
			more := syscall.Rlimit{Cur: most, Max: most}
			if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
				return int(most), nil
			}
		}
	}
	// Without the capability SYS_RESOURCE the hard limit is what there is.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raise the limit of open files: %w", err)
	}
	return int(limit.Cur), nil
}

// descriptorsAside is what a process needs beside those of connections.
const descriptorsAside = 1500

// flows are the numbers of connections that a row holds: those that the limit
// of open files leaves room for, and the most it does in place of the rest.
func (r *runner) flows(row string, wanted ...int) []int {
	most := (r.files - descriptorsAside) / 2 // atlanticd has both ends
	for i, n := range wanted {
		if n > most {
			r.Missing = append(r.Missing, fmt.Sprintf("%s: more than %d connections: this machine allows a process %d open files", row, most, r.files))
			return append(wanted[:i:i], most)
		}
	}
	return wanted
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func system() string {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return runtime.GOOS
	}
	var release []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	return fmt.Sprintf("Linux %s, %d processors, %s", release, runtime.NumCPU(), runtime.Version())
}

// slug is a name as figures have it.
func slug(s string) string {
	return strings.NewReplacer(" ", "-", "/", "", ",", "").Replace(strings.ToLower(s))
}
