package bench

import (
	"context"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// addedTurn is how long the two sides alternate.
const addedTurn = 500 * time.Millisecond

// added is the row "added".
func (r *runner) added(ctx context.Context) error {
	table := Table{
		Title:   "What we add to a request, 200 a second, mixed",
		Columns: []string{"upstream", "", "p50 ms", "p95", "p99", "requests", "errors"},
		Notes: []string{"From the request (or, for the 30 % on a fresh connection, from connect) to the last byte of answers of 0.5 to 128 KiB. " +
			"Both sides take turns of 500 ms. Nothing delays the path, so that a round trip saved does not hide what is added."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	for i, c := range r.schemes() {
		if c.scheme == proxy.HTTPS {
			continue // an app's own TLS is not what is compared
		}
		s, err := r.stage(lab.Options{})
		if err != nil {
			return err
		}
		rows, err := r.addedOf(ctx, s, c, i)
		s.Close()
		if err != nil {
			return err
		}
		table.Rows = append(table.Rows, rows...)
	}
	return nil
}

func (r *runner) addedOf(ctx context.Context, s *stage, c scheme, index int) ([][]string, error) {
	p, err := s.proxy(c.scheme, index, c.http1)
	if err != nil {
		return nil, err
	}
	v, err := s.serve(ctx, s.upstream(p.URL()), true)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	task := Task{Kind: Load, Targets: targets(20), Rate: 200, Time: pick(r, 5*time.Second, time.Second), Turn: addedTurn, Seed: 11}
	var results [2]Result
	for range 2 { // the first is for warming up
		alone := task
		alone.Via, alone.Odd = p.URL(), true
		r.show("%s", c.name)
		direct, err := s.start(ctx, lab.LAN, alone)
		if err != nil {
			return nil, err
		}
		ours, oursErr := s.run(ctx, lab.Client, task)
		res, err := direct.finish()
		if err == nil {
			err = oursErr
		}
		if err != nil {
			return nil, err
		}
		results = [2]Result{res, ours}
		task.Seed++
		task.Time = pick(r, time.Minute, 2*time.Second)
	}
	d, o := results[0], results[1]
	name := "added/" + slug(c.name) + "/"
	r.atMost(name+"p50", o.P50-d.P50, "ms", 0.3)
	r.atMost(name+"p95", o.P95-d.P95, "ms", 1)
	r.atMost(name+"p99", o.P99-d.P99, "ms", 3)
	r.atMost(name+"errors", float64(o.Errors), "", 0)
	line := func(who string, x Result) []string {
		return []string{c.name, who, number(x.P50), number(x.P95), number(x.P99), number(float64(x.Count)), number(float64(x.Errors))}
	}
	return [][]string{line("app speaks to the proxy itself", d), line("through us", o),
		{"", "added", number(o.P50 - d.P50), number(o.P95 - d.P95), number(o.P99 - d.P99), "", ""}}, nil
}
