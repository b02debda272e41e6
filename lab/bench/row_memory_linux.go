package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
)

// crowd is connections that are held by several processes of the load.
type crowd struct {
	s       *stage
	loads   []*load
	held    int
	refused int
}

// grow opens connections until n are held.
func (c *crowd) grow(ctx context.Context, n int) error {
	more := n - c.held
	if more <= 0 {
		return nil
	}
	l, err := c.s.start(ctx, lab.Client, Task{Kind: Hold, Targets: targets(50), Count: more, Workers: 16})
	if err != nil {
		return err
	}
	c.loads = append(c.loads, l)
	res, err := l.next()
	c.held += res.Count
	c.refused += res.Errors
	if err == nil && res.Errors > 0 {
		err = fmt.Errorf("%d of %d connections could not be opened: %s", res.Errors, more, res.Error)
	}
	return err
}

// release asks on every connection once more, closes all, and returns how many
// did not answer.
func (c *crowd) release() (lost int, err error) {
	for _, l := range c.loads {
		res, e := l.finish()
		if e != nil {
			err = e
		}
		lost += res.Errors
	}
	c.loads = nil
	return lost, err
}

// memory is the row "memory".
func (r *runner) memory(ctx context.Context) error {
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
	table := Table{
		Title:   "Resident memory",
		Columns: []string{"connections", "RSS MiB after 1 s", "KiB each", "RSS MiB after 20 s", "KiB each", "descriptors", "threads"},
		Notes: []string{"Each connection has carried one request before it is counted, and answers another one afterwards. " +
			"After 20 s without a byte a connection is at rest; what was aimed for is meant then."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	sizes := r.flows("memory", pick(r, []int{0, 2000, 10000, 50000}, []int{0, 50, 200})...)
	var all []usage // at rest
	c := &crowd{s: s}
	for _, n := range sizes {
		r.show("%d connections", n)
		if err := c.grow(ctx, n); err != nil {
			c.release()
			return err
		}
		var at [2]usage
		for i, pause := range []time.Duration{pick(r, time.Second, 100*time.Millisecond), pick(r, 19*time.Second, 100*time.Millisecond)} {
			sleep(ctx, pause)
			if at[i], err = v.usage(ctx); err != nil {
				c.release()
				return err
			}
		}
		all = append(all, at[1])
		cells := []string{fmt.Sprint(n)}
		for _, u := range at {
			each := "–"
			if n > 0 {
				each = number(float64(u.rss-all[0].rss) / float64(n) / 1024)
			}
			cells = append(cells, number(float64(u.rss)/mib), each)
		}
		table.Rows = append(table.Rows, append(cells, fmt.Sprint(at[1].descriptors), fmt.Sprint(at[1].threads)))
		r.add(fmt.Sprintf("memory/%d/at-once", n), float64(at[0].rss)/mib, "MiB")
		if limit, ok := map[int]float64{0: 15, 2000: 35}[n]; ok {
			r.atMost(fmt.Sprintf("memory/%d", n), float64(at[1].rss)/mib, "MiB", limit)
		} else {
			r.add(fmt.Sprintf("memory/%d", n), float64(at[1].rss)/mib, "MiB")
		}
	}
	last := len(sizes) - 1
	r.atMost("memory/each-beyond", float64(all[last].rss-all[1].rss)/float64(sizes[last]-sizes[1])/1024, "KiB", 8)
	lost, err := c.release()
	r.atMost("memory/lost", float64(lost), "connections", 0)
	return err
}
