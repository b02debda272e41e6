package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"
)

// printer writes text for people. Every string it is given may come from
// somebody else (a host name, a process, an upstream's answer), so control
// characters are taken out; only its own styles bring escape sequences.
type printer struct {
	w     *output
	named func(string) string // has text name the programs as they can be started
	tty   bool                // w is a terminal
	color bool
}

// output remembers that something could not be written.
type output struct {
	w   io.Writer
	err error // the first
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// styled is text that may hold our own escape sequences.
type styled string

func newPrinter(w io.Writer, named func(string) string) *printer {
	f, ok := w.(*os.File)
	tty := ok && term.IsTerminal(int(f.Fd()))
	return &printer{w: &output{w: w}, named: named, tty: tty, color: tty && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// line writes one line.
func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, p.text(format, args...))
}

func (p *printer) text(format string, args ...any) styled {
	for i, arg := range args {
		switch v := arg.(type) {
		case styled:
		case string:
			args[i] = plain(v)
		case fmt.Stringer:
			args[i] = plain(v.String())
		}
	}
	return styled(p.named(fmt.Sprintf(format, args...)))
}

// json writes v as one indented document.
func (p *printer) json(v any) error {
	enc := json.NewEncoder(p.w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (p *printer) style(code, s string) styled {
	s = plain(s)
	if !p.color || s == "" {
		return styled(s)
	}
	return styled("\x1b[" + code + "m" + s + "\x1b[0m")
}

func (p *printer) bold(s string) styled   { return p.style("1", s) }
func (p *printer) dim(s string) styled    { return p.style("2", s) }
func (p *printer) red(s string) styled    { return p.style("31", s) }
func (p *printer) green(s string) styled  { return p.style("32", s) }
func (p *printer) yellow(s string) styled { return p.style("33", s) }

// plain takes out what a terminal would obey, and makes one line of several.
func plain(s string) string {
	s = strings.Join(lines(s), "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return '?'
		}
		return r
	}, s)
}

// lines are the lines of s, each once: errors that were joined have one each,
// and several may have met the same thing.
func lines(s string) (out []string) {
	for line := range strings.Lines(s) {
		if line = strings.TrimRight(line, "\r\n"); line != "" && !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}

// table writes rows in columns; the last column is not padded. head may be nil.
func (p *printer) table(head []string, rows [][]string) {
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(plain(cell))))
		}
	}
	write := func(row []string, style func(string) styled) {
		var b strings.Builder
		for i, cell := range row {
			cell = plain(cell)
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-len([]rune(cell))+2))
			}
		}
		fmt.Fprintln(p.w, style(strings.TrimRight(b.String(), " ")))
	}
	write(head, p.dim)
	for _, row := range rows {
		write(row, func(s string) styled { return styled(s) })
	}
}

// size writes bytes with three digits at most: 999 B, 1.5 MB, 21 GB.
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, unit := float64(n), -1
	for v >= 999.5 && unit < len(units)-1 {
		v, unit = v/1000, unit+1
	}
	digits := 0
	if v < 9.95 {
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + units[unit:unit+1] + "B"
}

// millis writes milliseconds: 0.35 ms, 4.2 ms, 120 ms; "–" for none.
func millis(ms float64) string {
	switch {
	case ms <= 0 || math.IsNaN(ms):
		return "–"
	case ms < 1:
		return strconv.FormatFloat(ms, 'f', 2, 64) + " ms"
	case ms < 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 0, 64) + " ms"
}

// age writes a duration in its two largest units: 3 s, 2 min 5 s, 4 d 2 h.
func age(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	day, h, m, s := d/(24*time.Hour), d/time.Hour%24, d/time.Minute%60, d/time.Second%60
	switch {
	case day > 0:
		return fmt.Sprintf("%d d %d h", day, h)
	case h > 0:
		return fmt.Sprintf("%d h %d min", h, m)
	case m > 0:
		return fmt.Sprintf("%d min %d s", m, s)
	}
	return fmt.Sprintf("%d s", s)
}
