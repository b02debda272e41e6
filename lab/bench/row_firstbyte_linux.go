package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
	"github.com/atlanticproxy/atlanticproxy/lab/wanem"
)

// path20 is a path of 20 ms there and back, without limit or loss.
func path20() wanem.Link { return wanem.Link{Delay: 10 * time.Millisecond} }

const rtt20 = 20.0 // ms

// scheme is one way to speak to a proxy.
type scheme struct {
	name   string
	scheme proxy.Scheme
	http1  bool // not HTTP/2
}

func schemes() []scheme {
	return []scheme{
		{"SOCKS5", proxy.SOCKS5, false},
		{"CONNECT", proxy.HTTP, false},
		{"CONNECT in TLS", proxy.HTTPS, true},
		{"HTTP/2", proxy.HTTPS, false},
	}
}

// schemes are those that were asked for, of all or, if it has to be quick, of
// two that have little in common.
func (r *runner) schemes() []scheme {
	all := pick(r, schemes(), []scheme{schemes()[0], schemes()[3]})
	return slices.DeleteFunc(all, func(c scheme) bool {
		return len(r.Upstreams) > 0 && !slices.Contains(r.Upstreams, slug(c.name))
	})
}

// firstByte is the row "first-byte".
func (r *runner) firstByte(ctx context.Context) error {
	s, err := r.stage(lab.Options{Impair: true})
	if err != nil {
		return err
	}
	defer s.Close()
	s.WAN.SetBoth(path20())
	table := Table{
		Title: "First byte of a fresh connection, 20 ms path, in round trips",
		Columns: []string{"upstream", "app speaks to the proxy itself", "ours p50", "p99", "first flow after a start", "first flow ever",
			"early data off: p50", "p99", "proxy loses it: p50", "p99"},
		Notes: []string{"From connect(2) to the first byte of the answer. Steady: one fresh connection after the other, 30 ms between them, " +
			"after as many that are not counted. An app that speaks to an HTTP/2 proxy itself is counted with a session of its own for each connection, as CONNECT in TLS."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	for i, c := range r.schemes() {
		cells, err := r.firstByteOf(ctx, s, c, i)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		table.Rows = append(table.Rows, append([]string{c.name}, cells...))
	}
	return nil
}

// orders are the ways early data can go.
func orders() []order {
	return []order{
		{"early", 1.15, false, nil},
		{"off", 2.15, false, []string{`early_data = "off"`}},
		{"lost", 2.15, true, nil},
	}
}

type order struct {
	name   string
	limit  float64 // RTT
	drop   bool    // by the proxy
	config []string
}

func (r *runner) firstByteOf(ctx context.Context, s *stage, c scheme, index int) ([]string, error) {
	name := "first-byte/" + slug(c.name) + "/"
	task := Task{Kind: Fresh, Targets: targets(20), Count: pick(r, 150, 4), Gap: 30 * time.Millisecond, Bytes: 1 << 10}
	var cells []string
	for i, o := range orders() {
		if o.drop && c.name == "HTTP/2" {
			cells = append(cells, "–", "–") // a stream loses nothing
			continue
		}
		p, err := s.StartProxy(lab.ProxyOptions{Scheme: c.scheme, Index: index, Port: uint16(7000 + i), HTTP1Only: c.http1, DropEarly: o.drop})
		if err != nil {
			return nil, err
		}
		if i == 0 {
			r.show("%s: an app that speaks to the proxy itself", c.name)
			alone := task
			alone.Via = p.URL()
			res, err := s.run(ctx, lab.LAN, alone)
			if err != nil {
				return nil, err
			}
			r.add(name+"app-alone/p50", res.P50/rtt20, "RTT")
			r.atMost(name+"app-alone/errors", float64(res.Errors), "", 0)
			cells = append(cells, number(res.P50/rtt20))
		}
		r.show("%s: through us, early data: %s", c.name, o.name)
		steady, first, err := r.through(ctx, s, task, s.upstream(p.URL(), o.config...), pick(r, []int{6, 1, 1}, []int{2, 1, 1})[i])
		if err != nil {
			return nil, err
		}
		r.atMost(name+o.name+"/p50", steady.P50/rtt20, "RTT", o.limit)
		r.add(name+o.name+"/p99", steady.P99/rtt20, "RTT")
		r.atMost(name+o.name+"/errors", float64(steady.Errors), "", 0)
		cells = append(cells, number(steady.P50/rtt20), number(steady.P99/rtt20))
		if i == 0 {
			r.add(name+o.name+"/after-start", median(first[1:])/rtt20, "RTT")
			r.add(name+o.name+"/first-ever", first[0]/rtt20, "RTT")
			cells = append(cells, number(median(first[1:])/rtt20), number(first[0]/rtt20))
		}
		if err := p.Close(); err != nil {
			return nil, err
		}
	}
	return cells, nil
}

// through starts the service some times, takes the first flow of each (in ms;
// the very first with nothing learnt), and measures the last under steady
// traffic.
func (r *runner) through(ctx context.Context, s *stage, task Task, config string, starts int) (steady Result, first []float64, err error) {
	for i := range starts {
		v, err := s.serve(ctx, config, i == 0)
		if err != nil {
			return steady, first, err
		}
		one := task
		one.Count = 1
		res, err := s.run(ctx, lab.Client, one)
		if err == nil && res.Errors > 0 {
			err = fmt.Errorf("first flow: %s", res.Error)
		}
		if err == nil && i < starts-1 {
			_, err = s.run(ctx, lab.Client, one) // so that it learns what later starts know
		} else if err == nil {
			if _, err = s.run(ctx, lab.Client, task); err == nil {
				steady, err = s.run(ctx, lab.Client, task)
			}
		}
		if closed := v.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return steady, first, err
		}
		first = append(first, res.P50)
	}
	return steady, first, nil
}
