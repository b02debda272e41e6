//go:build !race

package netstack

const slower = 1
