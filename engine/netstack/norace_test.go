//go:build linux && !race

package netstack

const slower = 1
