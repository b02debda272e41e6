package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
)

// flatness: over the last three quarters of a soak, the straight line through
// what is held may rise by this share.
const flatness = 10.0 // %

// soak is the row "soak".
func (r *runner) soak(ctx context.Context) error {
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
	flows, length := pick(r, r.SoakFlows, 300), pick(r, r.SoakTime, 3*time.Second)
	r.show("%d flows over %v", flows, length)
	l, err := s.start(ctx, lab.Client, Task{Kind: Fresh, Targets: targets(100), Count: flows, Workers: 64,
		Rate: float64(flows) / length.Seconds(), Bytes: 1 << 10})
	if err != nil {
		return err
	}
	var res Result
	done := make(chan error, 1)
	go func() { // ends with the load; waited for below
		var err error
		res, err = l.finish()
		done <- err
	}()
	samples, err := r.sample(ctx, v, max(length/240, 100*time.Millisecond), done)
	if err != nil {
		return err
	}
	sleep(ctx, pick(r, 15*time.Second, 500*time.Millisecond))
	after, err := v.usage(ctx)
	if err != nil {
		return err
	}
	r.atMost("soak/errors", float64(res.Errors), "", 0)
	if res.Errors > 0 {
		r.show("first error: %s", res.Error)
	}
	r.add("soak/flows", float64(res.Count), "")
	r.add("soak/rate", res.Rate(), "/s")
	r.add("soak/first-byte-p99", res.P99, "ms")
	r.verdict(samples, after, res)
	return nil
}

// sample takes the service's usage every so often until done tells.
func (r *runner) sample(ctx context.Context, v *service, every time.Duration, done <-chan error) (all []usage, err error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		u, uErr := v.usage(ctx)
		if uErr == nil {
			all = append(all, u)
		} else if err == nil {
			err = fmt.Errorf("the service's usage: %w", uErr)
		}
		select {
		case e := <-done:
			if err == nil {
				err = e
			}
			return all, err
		case <-tick.C:
		}
	}
}

// verdict says how flat everything was, and plots it.
func (r *runner) verdict(all []usage, after usage, res Result) {
	table := Table{
		Title:   fmt.Sprintf("Soak: %d flows in %.0f s", res.Count, res.Seconds),
		Columns: []string{"", "after a quarter (line)", "at the end (line)", "rise %", "flat", "15 s after the load"},
		Notes:   []string{fmt.Sprintf("First byte p50 %s, p99 %s ms; errors: %d.", number(res.P50), number(res.P99), res.Errors)},
	}
	plot := Plot{Name: "soak", Title: table.Title, X: "minutes", Y: "MiB, or how many", LogY: true}
	for _, of := range []struct {
		name  string
		value func(usage) float64
	}{
		{"RSS MiB", func(u usage) float64 { return float64(u.rss) / mib }},
		{"heap MiB", func(u usage) float64 { return u.heap / mib }},
		{"goroutines", func(u usage) float64 { return u.goroutines }},
		{"descriptors", func(u usage) float64 { return float64(u.descriptors) }},
		{"threads", func(u usage) float64 { return float64(u.threads) }},
	} {
		l := Line{Name: of.name}
		for _, u := range all {
			l.Xs, l.Ys = append(l.Xs, u.at.Sub(all[0].at).Minutes()), append(l.Ys, of.value(u))
		}
		from := len(all) / 4
		first, last := trend(l.Xs[from:], l.Ys[from:])
		if first == 0 && last == 0 {
			r.Missing = append(r.Missing, "soak: "+of.name+": the service does not tell")
			continue
		}
		rise := 100 * (last - first) / max(first, 1)
		flat := "yes"
		if rise > flatness {
			flat = "**no**"
		}
		r.atMost("soak/rise/"+slug(of.name), rise, "%", flatness)
		table.Rows = append(table.Rows, []string{of.name, number(first), number(last), number(rise), flat, number(of.value(after))})
		plot.Lines = append(plot.Lines, l)
	}
	r.tables, r.plots = append(r.tables, table), append(r.plots, plot)
}
