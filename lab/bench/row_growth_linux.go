package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
)

// growth is the row "growth".
func (r *runner) growth(ctx context.Context) error {
	if err := r.growthOfFlows(ctx); err != nil {
		return err
	}
	if r.Benchmarks == "" {
		r.Missing = append(r.Missing, "growth: the cost of a choice among upstreams and of a rule match: no output of go test -bench was given")
		return nil
	}
	all, err := r.benchmarks()
	if err == nil {
		r.growthOfTables(all)
	}
	return err
}

// crowded is what was measured beside so many connections.
type crowded struct {
	flows                              float64
	p50, p99, gbps, cpuPerGB, rss, cps float64
}

func (r *runner) growthOfFlows(ctx context.Context) error {
	s, err := r.stage(lab.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	v, err := s.serve(ctx, s.upstream(end()), true)
	if err != nil {
		return err
	}
	defer v.Close()
	c := &crowd{s: s}
	var all []crowded
	for _, n := range r.flows("growth", pick(r, []int{10, 100, 1000, 10000, 50000}, []int{10, 40})...) {
		r.show("beside %d connections", n)
		if err = c.grow(ctx, n); err != nil {
			break
		}
		var x crowded
		if x, err = r.beside(ctx, s, v, n); err != nil {
			break
		}
		all = append(all, x)
	}
	lost, releaseErr := c.release()
	if err == nil {
		err = releaseErr
	}
	r.atMost("growth/lost", float64(lost), "connections", 0)
	r.plotGrowth(all)
	return err
}

// beside measures new flows beside n connections that are held.
func (r *runner) beside(ctx context.Context, s *stage, v *service, n int) (x crowded, err error) {
	sleep(ctx, pick(r, 2*time.Second, 100*time.Millisecond))
	fresh := Task{Kind: Fresh, Targets: targets(20), Count: pick(r, 400, 10), Gap: 5 * time.Millisecond, Bytes: 1 << 10}
	first, err := s.run(ctx, lab.Client, fresh)
	if err != nil {
		return x, err
	}
	many := fresh
	many.Count, many.Gap, many.Workers, many.Time = 0, 0, 16, pick(r, 3*time.Second, 200*time.Millisecond)
	rate, err := s.run(ctx, lab.Client, many)
	if err != nil {
		return x, err
	}
	before, err := v.usage(ctx)
	if err != nil {
		return x, err
	}
	bulk, err := s.run(ctx, lab.Client, Task{Kind: Bulk, Targets: targets(1), Time: pick(r, 4*time.Second, 200*time.Millisecond)})
	if err != nil {
		return x, err
	}
	after, err := v.usage(ctx)
	if err != nil {
		return x, err
	}
	x = crowded{flows: float64(n), p50: first.P50, p99: first.P99, gbps: bulk.Gbps(), rss: float64(after.rss) / mib, cps: rate.Rate(),
		cpuPerGB: (after.cpu - before.cpu).Seconds() / max(float64(bulk.Bytes)/1e9, 1e-9)}
	name := fmt.Sprintf("growth/%d/", n)
	r.add(name+"first-byte-p50", x.p50, "ms")
	r.add(name+"first-byte-p99", x.p99, "ms")
	r.add(name+"throughput", x.gbps, "Gbit/s")
	r.add(name+"cpu", x.cpuPerGB, "s/GB")
	r.add(name+"rss", x.rss, "MiB")
	r.atMost(name+"errors", float64(first.Errors+rate.Errors+bulk.Errors), "", 0)
	return x, nil
}

func (r *runner) plotGrowth(all []crowded) {
	table := Table{
		Title:   "How the cost grows with connections that are open",
		Columns: []string{"connections", "first byte p50 ms", "p99", "new connections a second", "download Gbit/s", "CPU s/GB, ours", "RSS MiB"},
		Notes:   []string{"SOCKS5 upstream that answers in the target's place; nothing delays the path. The connections are held and have carried a request each; beside them, fresh ones and one download."},
	}
	column := func(name string, of func(crowded) float64) Line {
		l := Line{Name: name}
		for _, x := range all {
			l.Xs, l.Ys = append(l.Xs, x.flows), append(l.Ys, of(x))
		}
		return l
	}
	for _, x := range all {
		table.Rows = append(table.Rows, []string{number(x.flows), number(x.p50), number(x.p99), number(x.cps), number(x.gbps), number(x.cpuPerGB), number(x.rss)})
	}
	r.tables = append(r.tables, table)
	const flows = "connections open"
	r.plots = append(r.plots,
		Plot{Name: "growth-first-byte", Title: "First byte of a fresh connection", X: flows, Y: "ms", LogX: true, LogY: true, Lines: []Line{
			column("p50", func(x crowded) float64 { return x.p50 }), column("p99", func(x crowded) float64 { return x.p99 })}},
		Plot{Name: "growth-throughput", Title: "One download, and what it costs us", X: flows, Y: "Gbit/s, CPU seconds a GB", LogX: true, Lines: []Line{
			column("Gbit/s", func(x crowded) float64 { return x.gbps }), column("CPU seconds a GB", func(x crowded) float64 { return x.cpuPerGB })}},
		Plot{Name: "growth-connections", Title: "New connections a second, 16 workers", X: flows, Y: "connections a second", LogX: true, Lines: []Line{
			column("new connections a second", func(x crowded) float64 { return x.cps })}},
		Plot{Name: "growth-memory", Title: "Resident memory", X: flows, Y: "MiB", LogX: true, LogY: true, Lines: []Line{
			column("RSS", func(x crowded) float64 { return x.rss })}})
}

// growthOfTables plots what single functions cost by the size of their tables.
func (r *runner) growthOfTables(all []benchmark) {
	table := Table{Title: "How the cost grows with upstreams, rules and names", Columns: []string{"", "size", "ns"}}
	for _, of := range []struct{ benchmark, title, x string }{
		{"Pick", "A choice among endpoints", "endpoints"},
		{"Match", "A match against rules", "rules"},
		{"Answer", "An answer to a name", "names known"},
	} {
		lines := series(all, of.benchmark)
		if len(lines) == 0 {
			r.Missing = append(r.Missing, "growth: "+of.title+": no such benchmarks were given")
			continue
		}
		for _, l := range lines {
			for i := range l.Xs {
				table.Rows = append(table.Rows, []string{of.title + ", " + l.Name, number(l.Xs[i]), number(l.Ys[i])})
				r.add(fmt.Sprintf("growth/%s/%s/%.0f", slug(of.benchmark), slug(l.Name), l.Xs[i]), l.Ys[i], "ns")
			}
		}
		r.plots = append(r.plots, Plot{Name: "growth-" + slug(of.benchmark), Title: of.title, X: of.x, Y: "ns", LogX: true, LogY: true, Lines: lines})
	}
	r.tables = append(r.tables, table)
}
