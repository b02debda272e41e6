//go:build !linux

package main

import "runtime/debug"

// trim gives back the heap that only the start has used.
func trim() { debug.FreeOSMemory() }
