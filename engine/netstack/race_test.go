//go:build race

package netstack

// slower is how much the race detector slows gVisor down.
const slower = 4
