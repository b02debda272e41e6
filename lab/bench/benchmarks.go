package bench

import (
	"bufio"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// benchmark is one benchmark of go test -bench; of several counts the medians.
type benchmark struct {
	pkg, name string // without the module's path, Benchmark and the processors
	ns        float64
	allocs    float64 // -1 if it does not tell
}

// parseBenchmarks reads the output of go test -bench, in its order.
func parseBenchmarks(r io.Reader) ([]benchmark, error) {
	line := regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+([0-9.]+) ns/op(?:.*?([0-9]+) allocs/op)?`)
	type counts struct{ ns, allocs []float64 }
	found, order, pkg := map[[2]string]*counts{}, [][2]string{}, ""
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if p, ok := strings.CutPrefix(lines.Text(), "pkg: "); ok {
			pkg = strings.TrimPrefix(p, "github.com/atlanticproxy/atlanticproxy/")
		}
		m := line.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		key := [2]string{pkg, m[1]}
		if found[key] == nil {
			found[key] = &counts{}
			order = append(order, key)
		}
		ns, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			continue
		}
		allocs := -1.0
		if n, err := strconv.ParseFloat(m[3], 64); err == nil {
			allocs = n
		}
		found[key].ns, found[key].allocs = append(found[key].ns, ns), append(found[key].allocs, allocs)
	}
	var all []benchmark
	for _, key := range order {
		all = append(all, benchmark{key[0], key[1], median(found[key].ns), median(found[key].allocs)})
	}
	return all, lines.Err()
}

// series are the sub-benchmarks of a benchmark that are named by a size, as in
// BenchmarkPick/policy=latency/endpoints=100: nanoseconds by size, one Line for
// each name without the size.
func series(all []benchmark, of string) []Line {
	pattern := regexp.MustCompile(`^` + of + `/(.+)/\w+=(\d+)$`)
	var lines []Line
	for _, b := range all {
		m := pattern.FindStringSubmatch(b.name)
		if m == nil {
			continue
		}
		name := strings.ReplaceAll(m[1], "/", ", ")
		i := slices.IndexFunc(lines, func(l Line) bool { return l.Name == name })
		if i < 0 {
			i, lines = len(lines), append(lines, Line{Name: name})
		}
		size, err := strconv.ParseFloat(m[2], 64)
		if err == nil {
			lines[i].Xs, lines[i].Ys = append(lines[i].Xs, size), append(lines[i].Ys, b.ns)
		}
	}
	return lines
}

// hotLimit is what was aimed for, in ns and without allocation, by the package
// and how the benchmark's name begins and ends.
type hotLimit struct {
	pkg, begin, end string
	ns              float64
}

func hotLimits() []hotLimit {
	return []hotLimit{
		{"engine/resolve", "Pick/", "", 100},
		{"engine/rules", "Match/", "/rules=10000", 1000},
		{"engine/dns", "Answer/", "/names=10000", 20000},
	}
}

// hotFunctions makes the table of all benchmarks.
func (r *Report) hotFunctions(all []benchmark) {
	table := Table{Title: "Hot functions", Columns: []string{"", "ns", "allocations"}}
	for _, b := range all {
		allocs := "–"
		if b.allocs >= 0 {
			allocs = number(b.allocs)
		}
		table.Rows = append(table.Rows, []string{b.pkg + " " + b.name, number(b.ns), allocs})
		for _, l := range hotLimits() {
			if b.pkg == l.pkg && strings.HasPrefix(b.name, l.begin) && strings.HasSuffix(b.name, l.end) {
				r.atMost("hot/"+b.pkg+"/"+b.name, b.ns, "ns", l.ns)
				r.atMost("hot/"+b.pkg+"/"+b.name+"/allocations", b.allocs, "", 0)
			}
		}
	}
	r.tables = append(r.tables, table)
}
