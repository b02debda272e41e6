package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Figure is one number that was measured.
type Figure struct {
	Name  string  `json:"name"` // row/case/what, lower case
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Max or Min is what was aimed for; nil if nothing was.
	Max *float64 `json:"max,omitempty"`
	Min *float64 `json:"min,omitempty"`
}

// Met reports whether the figure is what was aimed for.
func (f Figure) Met() bool {
	return (f.Max == nil || f.Value <= *f.Max) && (f.Min == nil || f.Value >= *f.Min)
}

// target is what was aimed for, in words; "" if nothing was.
func (f Figure) target() string {
	switch {
	case f.Max != nil && *f.Max == 0:
		return "0"
	case f.Max != nil:
		return "≤ " + number(*f.Max)
	case f.Min != nil:
		return "≥ " + number(*f.Min)
	}
	return ""
}

// Table is one table of the report.
type Table struct {
	Title   string
	Columns []string
	Rows    [][]string
	Notes   []string // one paragraph each, below the table
}

// Report is everything that a run has found.
type Report struct {
	Commit  string   `json:"commit"`
	Command string   `json:"command"`
	System  string   `json:"system"`
	Date    string   `json:"date"` // RFC 3339
	Figures []Figure `json:"figures"`
	// Missing says what was not measured, and why.
	Missing []string `json:"missing,omitempty"`

	tables []Table
	plots  []Plot
}

// add notes a figure without a target.
func (r *Report) add(name string, value float64, unit string) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: value, Unit: unit})
}

// atMost and atLeast note a figure with one.
func (r *Report) atMost(name string, value float64, unit string, limit float64) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: value, Unit: unit, Max: &limit})
}

func (r *Report) atLeast(name string, value float64, unit string, limit float64) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: value, Unit: unit, Min: &limit})
}

// Get finds a figure by its name.
func (r *Report) Get(name string) (Figure, bool) {
	for _, f := range r.Figures {
		if f.Name == name {
			return f, true
		}
	}
	return Figure{}, false
}

// number prints with three significant digits, and no exponent.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a == 0 || a >= 100:
		return strconv.FormatFloat(math.Round(v), 'f', -1, 64)
	default:
		digits := 2 - int(math.Floor(math.Log10(a)))
		s := strconv.FormatFloat(v, 'f', digits, 64)
		if strings.Contains(s, ".") {
			s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
		}
		return s
	}
}

// Markdown writes what was aimed for first, then every table.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, commit %s, %s\n\n```console\n$ %s\n```\n", r.Date, r.Commit, r.System, r.Command)
	goals := Table{Title: "What was aimed for", Columns: []string{"", "measured", "target", "met"}}
	zeros := 0
	for _, f := range r.Figures {
		if f.Max != nil && *f.Max == 0 && f.Met() {
			zeros++
		} else if f.target() != "" {
			met := "yes"
			if !f.Met() {
				met = "**no**"
			}
			goals.Rows = append(goals.Rows, []string{f.Name, strings.TrimSpace(number(f.Value) + " " + f.Unit), f.target(), met})
		}
	}
	if zeros > 0 {
		goals.Notes = []string{fmt.Sprintf("%d more figures had to be 0 (errors, connections lost, allocations) and are.", zeros)}
	}
	for _, t := range append([]Table{goals}, r.tables...) {
		t.markdown(&b)
	}
	for _, p := range r.plots {
		fmt.Fprintf(&b, "\n![%s](plots/%s.svg)\n", p.Title, p.Name)
	}
	for i, m := range r.Missing {
		if i == 0 {
			b.WriteString("\n### Not measured\n\n")
		}
		fmt.Fprintf(&b, "- %s\n", m)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t Table) markdown(b *strings.Builder) {
	if len(t.Rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n### %s\n\n| %s |\n|%s\n", t.Title, strings.Join(t.Columns, " | "), "---|"+strings.Repeat("--:|", len(t.Columns)-1))
	for _, row := range t.Rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
	}
	for _, n := range t.Notes {
		fmt.Fprintf(b, "\n%s\n", n)
	}
}

// Save writes results.md, results.json and plots/*.svg into a folder.
func (r *Report) Save(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "plots"), 0o755); err != nil {
		return err
	}
	var md strings.Builder
	if err := r.Markdown(&md); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"results.md": []byte(md.String()), "results.json": append(text, '\n')}
	for _, p := range r.plots {
		files[filepath.Join("plots", p.Name+".svg")] = p.SVG()
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
