package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// results of one column.
type results struct {
	latencies, first []time.Duration
	reuse            float64
	mbit             float64
	plays            []playback
}

// percentile p (0 to 1) by nearest rank.
func percentile(all []time.Duration, p float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	rank := int(p*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }

// report prints the table and what each row means.
func report(w io.Writer, columns []*column, started time.Duration) {
	row := func(name string, cell func(c *column) string) {
		fmt.Fprintf(w, "%-36s", name)
		for _, c := range columns {
			fmt.Fprintf(w, " %15s", cell(c))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "A small internet on this machine: %v round trips, %.0f Mbit/s down, %.0f up.\n\n",
		2*oneWay, downRate/1e6, upRate/1e6)
	row("", func(c *column) string { return c.title })
	fmt.Fprintln(w, strings.Repeat("-", 36+16*len(columns)))
	for _, p := range []struct {
		name string
		at   float64
	}{{"p50", .5}, {"p95", .95}, {"p99", .99}} {
		row("request latency "+p.name, func(c *column) string { return ms(percentile(c.result.latencies, p.at)) })
	}
	row("added to no proxy, p50", func(c *column) string {
		return ms(max(0, percentile(c.result.latencies, .5)-percentile(columns[0].result.latencies, .5)))
	})
	row("first visit of a site, p50", func(c *column) string { return ms(percentile(c.result.first, .5)) })
	row("requests on a used connection", func(c *column) string {
		if c.via == nil {
			return "-"
		}
		return fmt.Sprintf("%.1f %%", 100*c.result.reuse)
	})
	row("throughput, one download", func(c *column) string { return fmt.Sprintf("%.1f Mbit/s", c.result.mbit) })
	for i, t := range tiers() {
		row("stalls at "+t.Name+" (start)", func(c *column) string {
			p := c.result.plays[i]
			if p.stalls == 0 {
				return fmt.Sprintf("0 (%s)", ms(p.start))
			}
			return fmt.Sprintf("%d, %s (%s)", p.stalls, ms(p.stall), ms(p.start))
		})
	}
	fmt.Fprintf(w, `
The apps are real HTTPS clients in a network namespace, measured from the request
to its last byte. "no proxy" and "ours" keep connections alive and speak HTTP/2,
as browsers do; the predecessor looked the name up and opened a new proxy
connection for every request, and its way is repeated here without its own
overhead. "ours" is atlanticd with its TUN as the apps' default route (on %s
after its start); the apps know of no proxy.

request latency   %d pages of %d objects of %d KiB, %d at a time, from one site
first visit       one object from each of %d sites, nothing connected before
used connection   browsing requests for which the proxy saw no new TCP connection.
                  The predecessor broke the apps' keep-alive. What ours connects
                  ahead counts against it, though no app waits for that: a first
                  visit is over sooner than without a proxy.
throughput        %d MiB over one connection
stalls            %d segments of %d s at %s; (time to the first picture)
`, started.Round(time.Millisecond), pages, requestsPerPage, objectBytes>>10, parallel, visits, downloadBytes>>20,
		segments, segmentSeconds, rates())
}

func rates() string {
	var all []string
	for _, t := range tiers() {
		all = append(all, fmt.Sprintf("%.1f", float64(t.BitRate)/1e6))
	}
	return strings.Join(all, ", ") + " Mbit/s"
}
