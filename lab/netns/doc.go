// Package netns makes network namespaces and opens sockets in them.
//
//	goroutine ── Do ──► locked thread, setns(2) ── fn ──► setns(2) back
//	goroutine ── DialFrom ──► socket(2) made in the namespace, connect anywhere
//
// A socket belongs to the namespace it was made in, whichever thread uses it
// later: so listeners and connections made here are served by ordinary
// goroutines. Linux only, root only. A leaf of the lab.
package netns
