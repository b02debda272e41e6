// Command demo is `make demo`; see package lab/demo.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/term"

	"github.com/atlanticproxy/atlanticproxy/lab/demo"
)

func main() {
	atlanticd := flag.String("atlanticd", "bin/atlanticd", "the service to run")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: it makes network namespaces, and that needs root: run `sudo make demo`.\n"+
			"Nothing outside these namespaces is touched.")
		os.Exit(1)
	}
	if _, err := os.Stat(*atlanticd); err != nil {
		fmt.Fprintf(os.Stderr, "demo: no service to run: %v\nBuild it with `make build`, or name it with -atlanticd.\n", err)
		os.Exit(1)
	}
	// More running threads than processors, so that the impairment box's are
	// never kept waiting for the servers' goroutines.
	runtime.GOMAXPROCS(max(8, runtime.NumCPU()))
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	opt := demo.Options{Atlanticd: *atlanticd, Out: os.Stdout}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		opt.Progress = os.Stderr
	}
	if err := demo.Run(ctx, opt); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}
