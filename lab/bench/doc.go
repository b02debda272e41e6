// Package bench is what `make bench` measures of the whole product: atlanticd in
// the lab's namespaces, apps on both sides of it, and tables, JSON and plots of
// what came out.
//
//	app process ──► atlanticd's TUN ──┐                  (client)
//	                                  ├─► router ─► proxy ─► target   (inet)
//	app process that speaks to the ───┘                  (lan)
//	proxy itself: the same, without us
//
// A row (Rows) is one question, such as "how long until the first byte?". It
// builds a lab of its own, runs one Task after the other in processes of their
// own (App), and notes Figures. Whatever two figures are compared comes from one
// run, and where it matters from turns of a few hundred milliseconds.
//
// Linux only, root only, and only the lab's namespaces are touched. Used by
// lab/cmd/bench and by its own smoke test; never imported by the product.
package bench
