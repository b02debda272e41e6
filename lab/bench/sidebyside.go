package bench

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// sideBySide is what a harness of system-wide proxies has measured, all in one
// run: medians by candidate and metric.
type sideBySide map[string]map[string]float64

// parseSideBySide reads lines "candidate metric value".
func parseSideBySide(r io.Reader) (sideBySide, error) {
	all := map[string]map[string][]float64{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 3 {
			continue
		}
		v, err := strconv.ParseFloat(words[2], 64)
		if err != nil {
			continue
		}
		if all[words[0]] == nil {
			all[words[0]] = map[string][]float64{}
		}
		all[words[0]][words[1]] = append(all[words[0]][words[1]], v)
	}
	out := sideBySide{}
	for name, metrics := range all {
		out[name] = map[string]float64{}
		for metric, values := range metrics {
			out[name][metric] = median(values)
		}
	}
	return out, lines.Err()
}

// ours is the candidate that is us; the built-in ones are no programs.
const ours = "atlantic"

func (s sideBySide) peers() (names []string) {
	for name := range s {
		if !strings.HasPrefix(name, ours) && name != "direct" && !strings.HasPrefix(name, "client-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// best is the best peer in a metric; "" if none was measured.
func (s sideBySide) best(metric string, lowest bool) (who string, value float64) {
	for _, name := range s.peers() {
		v, ok := s[name][metric]
		if ok && (who == "" || lowest == (v < value) && v != value) {
			who, value = name, v
		}
	}
	return who, value
}

// comparison is one metric of the harness and what was aimed for.
type comparison struct {
	metric, about, unit string
	lowest              bool    // less is better
	against             string  // the peer that the ratio is to; "" for the best
	ratio               float64 // at least (lowest: at most) so many times the peer's; 0 for nothing
	limit               float64 // in unit: at least, or at most; -1 for nothing
}

func comparisons() []comparison {
	return []comparison{
		{"dl1", "download, 1 stream", "Gbit/s", false, "", 1.15, -1},
		{"ul1", "upload, 1 stream", "Gbit/s", false, "", 1.15, -1},
		{"dl8", "download, 8 streams", "Gbit/s", false, "", 1.15, -1},
		{"ul8", "upload, 8 streams", "Gbit/s", false, "", 1.15, -1},
		{"dl1.cpu", "processor, download, 1 stream", "s/GB", true, "", 0, 0.40},
		{"ul1.cpu", "processor, upload, 1 stream", "s/GB", true, "", 0, 0.40},
		{"dl8.cpu", "processor, download, 8 streams", "s/GB", true, "", 0, 0.40},
		{"ul8.cpu", "processor, upload, 8 streams", "s/GB", true, "", 0, 0.40},
		{"cps", "new connections a second, 16 workers", "/s", false, "hev", 1.3, -1},
		{"cps.p50", "their p50", "ms", true, "hev", 0, -1},
		{"cps.p99", "their p99", "ms", true, "hev", 1, -1},
		{"cps.err", "their errors", "", true, "", 0, 0},
		{"ka1.p50", "keep-alive, 1 connection, p50", "ms", true, "", 0, 0.115},
		{"ka1.p99", "its p99", "ms", true, "", 0, -1},
		{"ka32.rps", "keep-alive, 32 connections", "/s", false, "", 0, 45000},
		{"ttfb.socks5", "first byte, 20 ms path, SOCKS5", "RTT", true, "", 0, 1.15},
		{"ttfb.http", "first byte, 20 ms path, CONNECT", "RTT", true, "", 0, 1.15},
		{"udp.p50", "UDP echo p50", "ms", true, "", 0, 0.10},
		{"udp.p99", "its p99", "ms", true, "", 0, -1},
		{"udpul.loss", "UDP at 200 Mbit/s, loss up", "%", true, "", 0, 0},
		{"udpdl.loss", "UDP at 200 Mbit/s, loss down", "%", true, "", 0, 0},
		{"srcport", "a source port serves two targets at once", "", false, "", 0, 1},
		{"rss.idle", "resident memory, idle", "MiB", true, "", 0, 15},
		{"rss.conns", "resident memory, 2,000 connections", "MiB", true, "", 0, 35},
	}
}

// compare makes the table of ratios, and of what was aimed for.
func (r *Report) compare(s sideBySide) {
	peers := s.peers()
	table := Table{
		Title:   "Ours beside other programs, system-wide, one run",
		Columns: append(append([]string{""}, peers...), "AtlanticProxy", "ratio to the best, or to hev for connections"),
	}
	for _, c := range comparisons() {
		mine, ok := s[ours][c.metric]
		if !ok {
			continue
		}
		cells := []string{strings.TrimSuffix(c.about+", "+c.unit, ", ")}
		for _, p := range peers {
			cell := "–"
			if v, ok := s[p][c.metric]; ok {
				cell = number(v)
			}
			cells = append(cells, cell)
		}
		who, theirs := s.best(c.metric, c.lowest)
		if c.against != "" {
			who, theirs = c.against, s[c.against][c.metric]
		}
		ratio := "–"
		if who != "" && theirs > 0 {
			ratio = fmt.Sprintf("%s (%s)", number(mine/theirs), who)
		}
		table.Rows = append(table.Rows, append(cells, number(mine), ratio))
		r.aim(c, mine, theirs)
	}
	r.tables = append(r.tables, table)
}

// aim notes what a comparison aimed for.
func (r *Report) aim(c comparison, mine, theirs float64) {
	name := "side-by-side/" + c.metric
	switch {
	case c.ratio > 0 && theirs > 0 && c.lowest:
		r.atMost(name+"/ratio", mine/theirs, "×", c.ratio)
	case c.ratio > 0 && theirs > 0:
		r.atLeast(name+"/ratio", mine/theirs, "×", c.ratio)
	}
	switch {
	case c.limit < 0:
		r.add(name, mine, c.unit)
	case c.lowest:
		r.atMost(name, mine, c.unit, c.limit)
	default:
		r.atLeast(name, mine, c.unit, c.limit)
	}
}
