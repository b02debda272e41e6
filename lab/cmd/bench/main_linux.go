// Command bench measures atlanticd in the lab's namespaces and writes tables,
// JSON and plots; see package lab/bench. `make bench` runs it, after the
// benchmarks of single functions and the comparison with other programs.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab/bench"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if task := os.Getenv(bench.AppVariable); task != "" {
		fail(bench.App(ctx, task, os.Stdin, os.Stdout)) // an app of the load, in a namespace
		return
	}
	opt := bench.Options{Progress: os.Stderr, Command: "bench " + strings.Join(os.Args[1:], " ")}
	var only, upstreams, out string
	flag.StringVar(&opt.Atlanticd, "atlanticd", "bin/atlanticd", "the service to measure")
	flag.StringVar(&only, "rows", "", "comma-separated rows; all if empty")
	flag.StringVar(&upstreams, "upstreams", "", "comma-separated: socks5, connect, connect-in-tls, http2, danted, tinyproxy, squid, apache2; all if empty")
	flag.BoolVar(&opt.Quick, "quick", false, "seconds a row: shows that it works, its figures mean nothing")
	flag.IntVar(&opt.SoakFlows, "soak-flows", 2_000_000, "flows of the row soak")
	flag.DurationVar(&opt.SoakTime, "soak-time", 20*time.Minute, "how long the row soak takes")
	flag.StringVar(&opt.Benchmarks, "benchmarks", "", "file with the output of go test -bench, for the row growth")
	flag.StringVar(&opt.SideBySide, "side-by-side", "", "file with a harness's results, for the row side-by-side")
	flag.StringVar(&out, "out", filepath.Join("bench", "out"), "folder for results.md, results.json and plots")
	flag.Usage = usage
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: it makes network namespaces, and that needs root: run `sudo make bench`.\n"+
			"Nothing outside these namespaces is touched.")
		os.Exit(1)
	}
	if only != "" {
		opt.Rows = strings.Split(only, ",")
	}
	if upstreams != "" {
		opt.Upstreams = strings.Split(upstreams, ",")
	}
	report, err := bench.Run(ctx, opt)
	if report != nil {
		fail(report.Save(out))
		fail(report.Markdown(os.Stdout))
	}
	fail(err)
}

func usage() {
	fmt.Fprintln(os.Stderr, "Usage: bench [flags]")
	flag.PrintDefaults()
	fmt.Fprintln(os.Stderr, "Rows:")
	for _, r := range bench.Rows() {
		fmt.Fprintf(os.Stderr, "  %-12s %s\n", r[0], r[1])
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
