package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNumber(t *testing.T) {
	for want, v := range map[string]float64{
		"0": 0, "1.15": 1.149, "1.1": 1.1, "12.3": 12.34, "1235": 1234.6, "0.0123": 0.01234, "-1.88": -1.881, "–": math.NaN(),
	} {
		if got := number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

func TestQuantileAndTrend(t *testing.T) {
	all := []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for q, want := range map[float64]float64{0: 1, .5: 5, .95: 10, 1: 10} {
		if got := quantile(all, q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	first, last := trend([]float64{10, 20, 30}, []float64{1, 2, 3})
	if math.Abs(first-1) > 1e-9 || math.Abs(last-3) > 1e-9 {
		t.Errorf("trend %v to %v, want 1 to 3", first, last)
	}
	if first, last = trend(nil, nil); first != 0 || last != 0 {
		t.Errorf("trend of nothing: %v to %v", first, last)
	}
}

func TestParseBenchmarks(t *testing.T) {
	const output = `goos: linux
pkg: github.com/atlanticproxy/atlanticproxy/engine/resolve
BenchmarkPick/policy=latency/endpoints=1-2         	 1000	        40.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkPick/policy=latency/endpoints=1-2         	 1000	        50.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkPick/policy=latency/endpoints=1-2         	 1000	        60.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkPick/policy=latency/endpoints=1000-2      	 1000	        90.5 ns/op	       0 B/op	       2 allocs/op
BenchmarkRank/endpoints=10-2                       	 1000	        90.5 ns/op
PASS
pkg: github.com/atlanticproxy/atlanticproxy/engine/rules
BenchmarkMatch/kind=mixed/rules=10000 	 1000	 512 ns/op	 0 B/op	 0 allocs/op
`
	all, err := parseBenchmarks(strings.NewReader(output))
	if err != nil || len(all) != 4 {
		t.Fatalf("%v, %v", all, err)
	}
	if all[0] != (benchmark{"engine/resolve", "Pick/policy=latency/endpoints=1", 50, 0}) || all[3].pkg != "engine/rules" || all[2].allocs != -1 {
		t.Errorf("%+v", all)
	}
	lines := series(all, "Pick")
	if len(lines) != 1 || lines[0].Name != "policy=latency" || len(lines[0].Xs) != 2 || lines[0].Ys[1] != 90.5 {
		t.Errorf("%+v", lines)
	}
	var r Report
	r.hotFunctions(all)
	if f, ok := r.Get("hot/engine/resolve/Pick/policy=latency/endpoints=1000/allocations"); !ok || f.Met() {
		t.Errorf("2 allocations pass: %+v", r.Figures)
	}
	if f, ok := r.Get("hot/engine/rules/Match/kind=mixed/rules=10000"); !ok || !f.Met() {
		t.Errorf("512 ns do not pass: %+v", r.Figures)
	}
}

func TestSideBySide(t *testing.T) {
	s, err := parseSideBySide(strings.NewReader(`direct dl1 20
client-socks5 dl1 16
sing-box-mixed dl1 10
sing-box-mixed dl1 11
sing-box-mixed dl1 10.5
hev dl1 5
hev cps 5000
hev cps.p99 5
atlantic dl1 12
atlantic cps 6000
atlantic cps.p99 5.5
atlantic ka1.p50 0.12
nonsense
`))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	r.compare(s)
	for name, want := range map[string]struct {
		value float64
		met   bool
	}{
		"side-by-side/dl1/ratio":     {12 / 10.5, false},
		"side-by-side/cps/ratio":     {1.2, false},
		"side-by-side/cps.p99/ratio": {1.1, false},
		"side-by-side/ka1.p50":       {0.12, false},
		"side-by-side/dl1":           {12, true},
	} {
		if f, ok := r.Get(name); !ok || math.Abs(f.Value-want.value) > 1e-9 || f.Met() != want.met {
			t.Errorf("%s: %+v, want %+v", name, f, want)
		}
	}
	if rows := r.tables[0].Rows; len(rows) != 4 || strings.Join(rows[0], "|") != "download, 1 stream, Gbit/s|5|10.5|12|1.14 (sing-box-mixed)" {
		t.Errorf("%q", rows)
	}
}

// TestPlots draws what is ordinary and what is odd, and reads it back.
func TestPlots(t *testing.T) {
	for name, p := range map[string]Plot{
		"nothing": {Title: "a < b & c"},
		"one":     {LogX: true, LogY: true, Lines: []Line{{Name: "x", Xs: []float64{5}, Ys: []float64{5}}}},
		"odd":     {LogY: true, Lines: []Line{{Name: "x", Xs: []float64{1, 2, 3}, Ys: []float64{0, math.NaN(), 7}}}},
		"flat":    {Lines: []Line{{Name: "x", Xs: []float64{1, 2}, Ys: []float64{0, 0}}}},
		"wide":    {LogX: true, LogY: true, Lines: []Line{{Name: "x", Xs: []float64{1, 1e6}, Ys: []float64{1e-6, 1e9}}}},
	} {
		svg := string(p.SVG())
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s: not finite: %s", name, svg)
		}
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func TestSave(t *testing.T) {
	var r Report
	r.atMost("a/p50", 1.1, "RTT", 1.15)
	r.atLeast("b/reuse", 90, "%", 99)
	r.atMost("d/errors", 0, "", 0)
	r.atMost("e/errors", 2, "", 0)
	r.Missing = []string{"c: no such program"}
	r.tables = []Table{{Title: "T", Columns: []string{"", "x"}, Rows: [][]string{{"row", "1"}}, Notes: []string{"Why."}}}
	r.plots = []Plot{{Name: "p", Title: "P"}}
	dir := t.TempDir()
	if err := r.Save(dir); err != nil {
		t.Fatal(err)
	}
	md, err := os.ReadFile(filepath.Join(dir, "results.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| a/p50 | 1.1 RTT | ≤ 1.15 | yes |", "| b/reuse | 90 % | ≥ 99 | **no** |", "| e/errors | 2 | 0 | **no** |", "1 more figures had to be 0", "| row | 1 |", "Why.", "- c: no such program", "plots/p.svg"} {
		if !strings.Contains(string(md), want) {
			t.Errorf("results.md lacks %q:\n%s", want, md)
		}
	}
	for _, name := range []string{"results.json", "plots/p.svg"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
