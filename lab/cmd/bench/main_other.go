//go:build !linux

// Command bench measures atlanticd; see package lab/bench.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it needs Linux: what it measures happens in network namespaces")
	os.Exit(1)
}
