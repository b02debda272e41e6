// Package wanem is the impairment box: what tc-netem(8) does, for kernels that
// lack it. It joins two namespaces by a pair of TAP devices:
//
//	namespace A ── tap ── Box ── tap ── namespace B
//	                 ▲  one thread per direction:
//	                 │  read ─► loss ─► duplicate ─► rate + queue ─► delay ± jitter ─► write
//	                 └─ Set(direction, Link), any time
//
// Frames keep their order unless Reorder says otherwise. Random decisions come
// from a seed. Linux only; a leaf of the lab but for lab/netns.
package wanem
