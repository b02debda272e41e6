package bench

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// Line is one series of a plot; points whose value is not finite, or not above
// zero on a logarithmic axis, are left out.
type Line struct {
	Name   string
	Xs, Ys []float64
}

// Plot is a line plot. The drawing has no background and reads on light and on
// dark pages.
type Plot struct {
	Name       string // file name without .svg
	Title      string
	X, Y       string // what the axes show, with units
	LogX, LogY bool
	Lines      []Line
}

// Sizes of the drawing, in user units.
const (
	plotWidth, plotHeight            = 720.0, 400.0
	plotLeft, plotRight              = 76.0, 20.0
	plotTop, plotBottom              = 44.0, 84.0
	plotAxisColour, plotLettersColor = "#8a8a8a", "#808890"
)

// palette is legible on white and on black: Okabe and Ito's, lightened or
// darkened to the middle.
func palette() []string {
	return []string{"#d97706", "#2f8fd0", "#12a074", "#c2577f", "#7c6fd6", "#8d8438", "#6f7b83", "#b3592c"}
}

// axis maps values to positions.
type axis struct {
	log      bool
	min, max float64
	from, to float64 // positions of min and max
}

func (a axis) at(v float64) float64 {
	lo, hi := a.min, a.max
	if a.log {
		lo, hi, v = math.Log10(lo), math.Log10(hi), math.Log10(v)
	}
	if hi == lo {
		return (a.from + a.to) / 2
	}
	return a.from + (v-lo)/(hi-lo)*(a.to-a.from)
}

// ticks are round values within the axis: powers of ten on a logarithmic one
// (with more between few), else about six steps of 1, 2 or 5.
func (a axis) ticks() []float64 {
	var out []float64
	if a.log {
		decades := math.Log10(a.max / a.min)
		for e := math.Floor(math.Log10(a.min)); e <= math.Ceil(math.Log10(a.max)); e++ {
			for m := 1.0; m < 10; m++ {
				v := m * math.Pow(10, e)
				wanted := m == 1 || decades < 2.5 && (m == 2 || m == 5) || decades < 1
				if wanted && v >= a.min*0.999 && v <= a.max*1.001 {
					out = append(out, v)
				}
			}
		}
		return out
	}
	raw := (a.max - a.min) / 6
	if raw <= 0 {
		return []float64{a.min}
	}
	unit := math.Pow(10, math.Floor(math.Log10(raw)))
	step := unit
	for _, m := range []float64{2, 5, 10} {
		if step < raw {
			step = m * unit
		}
	}
	for v := math.Ceil(a.min/step) * step; v <= a.max+step/1e6; v += step {
		out = append(out, v)
	}
	return out
}

// shown reports whether a point can be drawn.
func (p *Plot) shown(x, y float64) bool {
	ok := func(v float64, log bool) bool {
		return !math.IsNaN(v) && !math.IsInf(v, 0) && (!log || v > 0)
	}
	return ok(x, p.LogX) && ok(y, p.LogY)
}

// axes fits the axes to the points; a linear y axis begins at 0.
func (p *Plot) axes() (x, y axis, any bool) {
	x = axis{log: p.LogX, min: math.Inf(1), max: math.Inf(-1), from: plotLeft, to: plotWidth - plotRight}
	y = axis{log: p.LogY, min: math.Inf(1), max: math.Inf(-1), from: plotHeight - plotBottom, to: plotTop}
	for _, l := range p.Lines {
		for i := range l.Xs {
			if p.shown(l.Xs[i], l.Ys[i]) {
				x.min, x.max = min(x.min, l.Xs[i]), max(x.max, l.Xs[i])
				y.min, y.max = min(y.min, l.Ys[i]), max(y.max, l.Ys[i])
				any = true
			}
		}
	}
	if p.LogY {
		y.min, y.max = y.min/1.6, y.max*1.6
	} else {
		y.min, y.max = min(0, y.min), y.max*1.1
		if y.max <= y.min {
			y.max = y.min + 1
		}
	}
	return x, y, any
}

// SVG draws the plot.
func (p *Plot) SVG() []byte {
	var b bytes.Buffer
	places, height := p.legendPlaces()
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="system-ui, sans-serif" font-size="12" fill="%s">`+"\n",
		plotWidth, height, plotLettersColor)
	fmt.Fprintf(&b, "<title>%s</title>\n", escape(p.Title))
	text(&b, plotLeft, 22, "start", `font-size="15"`, p.Title)
	x, y, any := p.axes()
	if any {
		p.grid(&b, x, y)
		for i, l := range p.Lines {
			p.line(&b, x, y, l, palette()[i%len(palette())])
		}
	} else {
		text(&b, plotWidth/2, plotHeight/2, "middle", "", "nothing was measured")
	}
	p.legend(&b, places)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func (p *Plot) grid(b *bytes.Buffer, x, y axis) {
	rule := func(x1, y1, x2, y2, opacity float64) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-opacity="%g"/>`+"\n", x1, y1, x2, y2, plotAxisColour, opacity)
	}
	for _, v := range x.ticks() {
		rule(x.at(v), y.from, x.at(v), y.to, 0.25)
		text(b, x.at(v), y.from+18, "middle", "", short(v))
	}
	for _, v := range y.ticks() {
		rule(x.from, y.at(v), x.to, y.at(v), 0.25)
		text(b, x.from-8, y.at(v)+4, "end", "", short(v))
	}
	rule(x.from, y.from, x.to, y.from, 1)
	rule(x.from, y.from, x.from, y.to, 1)
	text(b, (x.from+x.to)/2, y.from+38, "middle", "", p.X)
	middle := (y.from + y.to) / 2
	text(b, 16, middle, "middle", fmt.Sprintf(`transform="rotate(-90 16 %.1f)"`, middle), p.Y)
}

func (p *Plot) line(b *bytes.Buffer, x, y axis, l Line, colour string) {
	var points []string
	for i := range l.Xs {
		if p.shown(l.Xs[i], l.Ys[i]) {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(l.Xs[i]), y.at(l.Ys[i])))
		}
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`+"\n", strings.Join(points, " "), colour)
	if len(points) > 40 {
		return // a curve, not a few measurements
	}
	for _, at := range points {
		cx, cy, _ := strings.Cut(at, ",")
		fmt.Fprintf(b, `<circle cx="%s" cy="%s" r="3.5" fill="%s"/>`+"\n", cx, cy, colour)
	}
}

// place is where the name of a line stands, below the axes.
type place struct{ x, y float64 }

// legendPlaces puts the names side by side, in as many rows as they need, and
// returns the height of the whole drawing.
func (p *Plot) legendPlaces() (all []place, height float64) {
	at := place{plotLeft, plotHeight - 20}
	for _, l := range p.Lines {
		width := 42 + 6.6*float64(len([]rune(l.Name)))
		if at.x+width > plotWidth && at.x > plotLeft {
			at = place{plotLeft, at.y + 20}
		}
		all = append(all, at)
		at.x += width
	}
	return all, at.y + 20
}

func (p *Plot) legend(b *bytes.Buffer, places []place) {
	for i, at := range places {
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="14" height="4" rx="2" fill="%s"/>`+"\n", at.x, at.y, palette()[i%len(palette())])
		text(b, at.x+20, at.y+6, "start", "", p.Lines[i].Name)
	}
}

func text(b *bytes.Buffer, x, y float64, anchor, attributes, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, attributes, escape(s))
}

func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// short prints a tick: 10k, 2M, 0.5.
func short(v float64) string {
	for _, u := range []struct {
		scale  float64
		letter string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= u.scale {
			return number(v/u.scale) + u.letter
		}
	}
	return number(v)
}
