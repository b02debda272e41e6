//go:build !linux

// Command demo is `make demo`; see package lab/demo.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "demo: it needs Linux: the small internet is made of network namespaces")
	os.Exit(1)
}
