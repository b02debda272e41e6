package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/atlanticproxy/atlanticproxy/lab"
	"github.com/atlanticproxy/atlanticproxy/lab/proxy"
	"github.com/atlanticproxy/atlanticproxy/lab/wanem"
)

// hls is the row "hls".
func (r *runner) hls(ctx context.Context) error {
	s, err := r.stage(lab.Options{Impair: true, Seed: 20})
	if err != nil {
		return err
	}
	defer s.Close()
	s.WAN.SetBoth(wanem.Link{Delay: 20 * time.Millisecond, Loss: 0.01, Rate: 30e6})
	if err := congestion(s, "bbr"); err != nil {
		r.Missing = append(r.Missing, fmt.Sprintf("hls: servers that send by BBR (%v): they send by the kernel's default", err))
	}
	table := Table{
		Title:   "A video player: 40 ms path, 1 % loss each way, 30 Mbit/s",
		Columns: []string{"quality", "way", "stalls", "stalled, ms", "start-up, ms (median of 9)", "segment p95, ms", "errors"},
		Notes: []string{"Segments of 2 s over HTTPS (HTTP/2), up to 10 s ahead. Origins and proxies send by BBR where the kernel has it, " +
			"as those of big video services do. 4K is 20 Mbit/s, 1080p 5."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	without := map[string]Result{}
	for i, c := range append([]scheme{{name: "no proxy"}}, r.schemes()...) {
		if err := r.hlsBy(ctx, s, c, i, without, &table); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// hlsBy plays all qualities one way; without remembers what no proxy gives.
func (r *runner) hlsBy(ctx context.Context, s *stage, c scheme, index int, without map[string]Result, table *Table) error {
	node := lab.LAN
	if c.scheme != "" {
		p, err := s.proxy(c.scheme, index, c.http1)
		if err != nil {
			return err
		}
		v, err := s.serve(ctx, s.upstream(p.URL()), true)
		if err != nil {
			return err
		}
		defer v.Close()
		node = lab.Client
	}
	for _, quality := range pick(r, []string{"1080p", "4k"}, []string{"480p"}) {
		r.show("%s, %s", c.name, quality)
		task := Task{Kind: Play, SegmentSeconds: 2, Ahead: 10 * time.Second, Count: pick(r, 25, 2),
			Targets: []string{"https://example.test/hls/" + quality + "/%d.ts?s=2"}}
		res, err := s.run(ctx, node, task)
		starts := []float64{res.Start}
		for range pick(r, 8, 0) { // one lost packet moves a start by a round trip or two
			first := task
			first.Count = 1
			one, e := s.run(ctx, node, first)
			if starts = append(starts, one.Start); e != nil {
				err = e
			}
		}
		if err != nil {
			return err
		}
		res.Start = median(starts)
		name := fmt.Sprintf("hls/%s/%s/", quality, slug(c.name))
		switch {
		case c.scheme == "":
			without[quality] = res
			r.add(name+"stalls", float64(res.Stalls), "")
			r.add(name+"start", res.Start, "ms")
		case quality == "4k":
			r.add(name+"stalls", float64(res.Stalls), "")
			r.add(name+"start", res.Start, "ms")
		default:
			r.atMost(name+"stalls", float64(res.Stalls), "", 0)
			r.atMost(name+"start", res.Start, "ms", without[quality].Start)
		}
		r.atMost(name+"errors", float64(res.Errors), "", 0)
		table.Rows = append(table.Rows, []string{quality, c.name, fmt.Sprint(res.Stalls), number(res.Stalled), number(res.Start), number(res.P95), fmt.Sprint(res.Errors)})
	}
	return nil
}

// congestion has servers in the internet send by that algorithm.
func congestion(s *stage, name string) error {
	out, err := s.Command(lab.Internet, "sysctl", "-qw", "net.ipv4.tcp_congestion_control="+name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// mixed is the row "mixed".
func (r *runner) mixed(ctx context.Context) error {
	table := Table{
		Title:   "A call (50 datagrams a second), alone and beside a 1080p player and a download",
		Columns: []string{"path", "beside", "way", "call p50 ms", "p95", "p99", "lost", "download Gbit/s", "stalls"},
		Notes:   []string{"SOCKS5 upstream. Without us there is no proxy at all. The line of 100 Mbit/s has a queue of 100 ms, which the download fills; the other has no limit."},
	}
	defer func() { r.tables = append(r.tables, table) }() // what there is, if the rest fails
	for _, path := range []struct {
		name string
		link wanem.Link
	}{
		{"20 ms, 100 Mbit/s", wanem.Link{Delay: 10 * time.Millisecond, Rate: 100e6}},
		{"no limit", wanem.Link{}},
	} {
		if err := r.mixedOn(ctx, path.name, path.link, &table); err != nil {
			return fmt.Errorf("%s: %w", path.name, err)
		}
	}
	return nil
}

func (r *runner) mixedOn(ctx context.Context, path string, link wanem.Link, table *Table) error {
	s, err := r.stage(lab.Options{Impair: link != wanem.Link{}, Seed: 20})
	if err != nil {
		return err
	}
	defer s.Close()
	if s.WAN != nil {
		s.WAN.SetBoth(link)
	}
	p, err := s.proxy(proxy.SOCKS5, 0, false)
	if err != nil {
		return err
	}
	v, err := s.serve(ctx, s.upstream(p.URL()), true)
	if err != nil {
		return err
	}
	defer v.Close()
	p95 := map[string][]float64{}
	for _, beside := range []string{"nothing", "video and download"} {
		// Turn about, so that what the machine does otherwise meets both.
		for range pick(r, 2, 1) {
			for way, node := range map[string]lab.Node{"without us": lab.LAN, "through us": lab.Client} {
				r.show("%s, beside %s, %s", path, beside, way)
				cells, call, err := r.callBeside(ctx, s, node, beside != "nothing")
				if err != nil {
					return err
				}
				table.Rows = append(table.Rows, append([]string{path, beside, way}, cells...))
				p95[way+beside] = append(p95[way+beside], call.P95)
			}
		}
	}
	added := func(beside string) float64 {
		return median(p95["through us"+beside]) - median(p95["without us"+beside])
	}
	name := "mixed/" + slug(path) + "/call-p95-added/"
	r.atMost(name+"alone", added("nothing"), "ms", 5)
	r.atMost(name+"beside", added("video and download"), "ms", 5)
	return nil
}

// callBeside measures one call, with or without what else a household does.
func (r *runner) callBeside(ctx context.Context, s *stage, node lab.Node, beside bool) (cells []string, call Result, err error) {
	length := pick(r, 8*time.Second, 500*time.Millisecond)
	var bulk, video *load
	if beside {
		if bulk, err = s.start(ctx, node, Task{Kind: Bulk, Targets: targets(1), Time: length + length/4}); err != nil {
			return nil, call, err
		}
		if video, err = s.start(ctx, node, Task{Kind: Play, SegmentSeconds: 2, Ahead: 4 * time.Second, Count: pick(r, 6, 1),
			Targets: []string{"https://example.test/hls/1080p/%d.ts?s=2"}}); err != nil {
			return nil, call, err
		}
		sleep(ctx, length/8)
	}
	call, err = s.run(ctx, node, Task{Kind: Call, Targets: []string{fmt.Sprintf("%s:7", lab.Origin4())}, Rate: 50, Time: length, Bytes: 172})
	cells = []string{number(call.P50), number(call.P95), number(call.P99), fmt.Sprint(call.Errors)}
	if !beside {
		return append(cells, "–", "–"), call, err
	}
	down, bulkErr := bulk.finish()
	seen, videoErr := video.finish()
	for _, e := range []error{bulkErr, videoErr} {
		if err == nil {
			err = e
		}
	}
	return append(cells, number(down.Gbps()), fmt.Sprint(seen.Stalls)), call, err
}
