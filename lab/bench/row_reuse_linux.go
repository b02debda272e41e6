package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
)

// reuse is the row "reuse".
func (r *runner) reuse(ctx context.Context) error {
	s, err := r.stage(lab.Options{Impair: true})
	if err != nil {
		return err
	}
	defer s.Close()
	s.WAN.SetBoth(path20())
	table := Table{
		Title:   "Reuse: flows that waited for no TCP or TLS handshake, browsing-like load",
		Columns: []string{"upstream", "session", "connections of apps", "reuse", "in status", "first byte p50, RTT", "p95", "below 2 RTT", "connections at the proxy, each", "errors"},
		Notes: []string{"Pages of 6 to 30 connections at once to several hosts, one to three requests on each, pauses of 0.3 to 5 s between pages. " +
			"Reuse is what status counted as reused, by the connections that apps made; \"in status\" is its own ratio since the start. A first byte in less than 2 round trips cannot have had a handshake before it; the apps see that, DNS and this machine's processors included. " +
			"A connection at the proxy serves one flow (HTTP/2: many); what is above 1 was made ahead and not used."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	for i, c := range r.schemes() {
		p, err := s.proxy(c.scheme, i, c.http1)
		if err != nil {
			return err
		}
		v, err := s.serve(ctx, s.upstream(p.URL()), true)
		if err != nil {
			return err
		}
		for _, phase := range []string{"cold", "steady"} {
			r.show("%s, %s", c.name, phase)
			cells, err := r.reuseIn(ctx, s, v, p, c, phase)
			if err != nil {
				v.Close()
				return fmt.Errorf("%s: %w", c.name, err)
			}
			table.Rows = append(table.Rows, cells)
		}
		if err := v.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) reuseIn(ctx context.Context, s *stage, v *service, p *proxy.Proxy, c scheme, phase string) ([]string, error) {
	length := map[string]time.Duration{"cold": time.Minute, "steady": 30 * time.Second}[phase]
	task := Task{Kind: Browse, Targets: names(40), Time: pick(r, length, time.Second), Seed: 7, Samples: true}
	var before, after api.Status
	var res Result
	accepted := p.Counters.Accepted.Load()
	err := v.get(ctx, "/v1/status", &before)
	if err == nil {
		res, err = s.run(ctx, lab.Client, task)
	}
	if err == nil {
		err = v.get(ctx, "/v1/status", &after)
	}
	if err != nil {
		return nil, err
	}
	flows := float64(res.Count + res.Errors)
	reused := float64(after.Flows.Reused-before.Flows.Reused) / max(flows, 1)
	quick := 0.0
	for _, ms := range res.Samples {
		if ms < 2*rtt20 {
			quick++
		}
	}
	quick /= max(float64(len(res.Samples)), 1)
	name := fmt.Sprintf("reuse/%s/%s/", slug(c.name), phase)
	r.atLeast(name+"reuse", 100*reused, "%", map[string]float64{"cold": 95, "steady": 99}[phase])
	r.add(name+"below-2-rtt", 100*quick, "%")
	r.add(name+"flows", flows, "")
	r.atMost(name+"errors", float64(res.Errors), "", 0)
	perFlow := float64(p.Counters.Accepted.Load()-accepted) / max(flows, 1)
	r.add(name+"connections-a-flow", perFlow, "")
	return []string{c.name, phase, number(flows), number(100*reused) + " %", number(100*after.Reuse) + " %", number(res.P50 / rtt20), number(res.P95 / rtt20),
		number(100*quick) + " %", number(perFlow), number(float64(res.Errors))}, nil
}
