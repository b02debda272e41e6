package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atlanticproxy/atlanticproxy/engine/api"
	"github.com/atlanticproxy/atlanticproxy/lab"
)

// peer is what the row "peers-real" knows of a real proxy.
type peer struct {
	kind lab.Kind
	name string
}

func peers() []peer {
	return []peer{{lab.Dante, "dante"}, {lab.Tinyproxy, "tinyproxy"}, {lab.Squid, "squid"}, {lab.Apache, "Apache, HTTP/2"}}
}

// peersReal is the row "peers-real".
func (r *runner) peersReal(ctx context.Context) error {
	table := Table{
		Title: "Through real proxies",
		Columns: []string{"proxy", "early data, by a probe of its own", "early data, as we found", "first byte, 20 ms path, RTT: app itself", "ours p50", "p99",
			"Gbit/s down: app itself", "ours", "Gbit/s up: app itself", "ours", "10k connections: a second", "p99 ms", "errors"},
		Notes: []string{"The probe is an app that sends a request and what is for the target in one write, and looks whether the answer is the target's. " +
			"10k connections: 16 workers, each connection new, with one answer of 1 KiB; an error is anything but that answer. " +
			"The app closes first: Apache never passes on that a target has closed a stream's connection."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	var errs []error
	for i, p := range pick(r, peers(), []peer{peers()[0], peers()[3]}) {
		if len(r.Upstreams) > 0 && !slices.Contains(r.Upstreams, string(p.kind)) {
			continue
		}
		slow, err := r.peerSlow(ctx, p, i)
		var fast []string
		if err == nil {
			fast, err = r.peerFast(ctx, p, i)
		}
		if errors.Is(err, lab.ErrNoPeer) {
			r.Missing = append(r.Missing, fmt.Sprintf("peers-real: %s is not installed (make deps)", p.name))
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
			continue
		}
		table.Rows = append(table.Rows, append(append([]string{p.name}, slow...), fast...))
	}
	return errors.Join(errs...)
}

// peerSlow is what is measured on a 20 ms path: verdicts and first bytes.
func (r *runner) peerSlow(ctx context.Context, p peer, index int) ([]string, error) {
	s, err := r.stage(lab.Options{Impair: true})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.WAN.SetBoth(path20())
	real, err := s.StartPeer(p.kind, index, 3128)
	if err != nil {
		return nil, err
	}
	r.show("%s: first byte", p.name)
	task := Task{Kind: Fresh, Targets: targets(20), Count: pick(r, 100, 5), Gap: 30 * time.Millisecond, Bytes: 1 << 10, Leave: true}
	alone := task
	alone.Via = real.URL
	direct, err := s.run(ctx, lab.LAN, alone)
	if err != nil {
		return nil, err
	}
	probe := alone
	probe.Kind, probe.Count = Probe, 3
	carries, err := s.run(ctx, lab.LAN, probe)
	if err != nil {
		return nil, err
	}
	v, err := s.serve(ctx, s.upstream(real.URL), true)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	if _, err := s.run(ctx, lab.Client, task); err != nil {
		return nil, err
	}
	ours, err := s.run(ctx, lab.Client, task)
	if err != nil {
		return nil, err
	}
	var ups api.Upstreams
	if err := v.get(ctx, "/v1/upstreams", &ups); err != nil {
		return nil, err
	}
	truth, found := "refuses", "unknown"
	if carries.Errors == 0 {
		truth = "carries"
	}
	for _, u := range ups.Upstreams {
		if u.InUse && u.Early != "" {
			found = u.Early
		}
	}
	name := "peers-real/" + string(p.kind) + "/"
	wrong := 0.0
	if p.kind != lab.Apache && found != truth { // what HTTP/2 streams carry is not what TLS does
		wrong = 1
	}
	r.atMost(name+"verdict-wrong", wrong, "", 0)
	r.add(name+"first-byte", ours.P50/rtt20, "RTT")
	r.atMost(name+"first-byte/errors", float64(ours.Errors), "", 0)
	return []string{truth, found, number(direct.P50 / rtt20), number(ours.P50 / rtt20), number(ours.P99 / rtt20)}, nil
}

// peerFast is what is measured without a delay: throughput and many connections.
func (r *runner) peerFast(ctx context.Context, p peer, index int) ([]string, error) {
	s, err := r.stage(lab.Options{})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	real, err := s.StartPeer(p.kind, index, 3128)
	if err != nil {
		return nil, err
	}
	v, err := s.serve(ctx, s.upstream(real.URL), true)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	name := "peers-real/" + string(p.kind) + "/"
	var cells []string
	for _, up := range []bool{false, true} {
		task := Task{Kind: Bulk, Targets: targets(1), Time: pick(r, 3*time.Second, 300*time.Millisecond), Up: up}
		alone := task
		alone.Via = real.URL
		r.show("%s: throughput", p.name)
		direct, err := s.run(ctx, lab.LAN, alone)
		if err != nil {
			return nil, err
		}
		ours, err := s.run(ctx, lab.Client, task)
		if err != nil {
			return nil, err
		}
		r.add(name+map[bool]string{false: "down", true: "up"}[up], ours.Gbps(), "Gbit/s")
		cells = append(cells, number(direct.Gbps()), number(ours.Gbps()))
	}
	r.show("%s: many connections", p.name)
	many, err := s.run(ctx, lab.Client, Task{Kind: Fresh, Targets: targets(50), Count: pick(r, 10000, 100), Workers: 16, Bytes: 1 << 10, Leave: true})
	if err != nil {
		return nil, err
	}
	if many.Errors > 0 {
		r.show("%s: first error: %s", p.name, many.Error)
	}
	r.atMost(name+"connections/errors", float64(many.Errors), "", 0)
	r.add(name+"connections/rate", many.Rate(), "/s")
	return append(cells, number(many.Rate()), number(many.P99), fmt.Sprint(many.Errors)), nil
}
