//go:build !linux

package upstream

import "net"

// limitUnsent does nothing: other systems keep less in a socket by themselves.
func limitUnsent(*net.TCPConn, int) {}

// unacknowledged is not known here.
func unacknowledged(*net.TCPConn) bool { return false }
