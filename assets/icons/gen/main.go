// Command gen draws the icons: a disc of sea with two waves. The state shows
// in the shape, so that it can be told without colour and at 22 pixels:
//
//	off         ring, waves drawn
//	connecting  ring in three arcs, waves drawn
//	on          full disc, waves cut out
//	blocked     full disc, a bar cut out
//	gone        ring, slashed
//	app         as on, larger and shaded, for launchers
package main

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"log"
	"math"
	"os"
	"path/filepath"
)

// Measures of the mark; the icon is 1 wide and high.
const (
	radius    = 0.47  // of the disc
	line      = 0.092 // width of the ring
	waveLine  = 0.088 // width of a wave
	waveGap   = 0.23  // between the two waves
	waveHigh  = 0.058 // amplitude
	waveLong  = 0.50  // length of one wave
	barHalf   = 0.078 // half the height of the blocking bar
	slashGap  = 0.07  // kept clear on both sides of the slash
	supersize = 8     // samples per pixel and axis
)

// shape tells whether a point belongs to the mark; x and y from -0.5 to 0.5.
type shape func(x, y float64) bool

type mark struct {
	name  string
	in    shape
	color color.NRGBA
}

func marks() []mark {
	sea := color.NRGBA{0x1c, 0x8f, 0xd8, 0xff}
	grey := color.NRGBA{0x94, 0x9f, 0xab, 0xff}
	return []mark{
		{"off", func(x, y float64) bool { return ring(x, y) || waves(x, y) && math.Hypot(x, y) < radius }, grey},
		{"connecting", func(x, y float64) bool {
			return ring(x, y) && arc(x, y) || waves(x, y) && math.Hypot(x, y) < radius-2*line
		}, color.NRGBA{0xe3, 0x9b, 0x1f, 0xff}},
		{"on", func(x, y float64) bool { return math.Hypot(x, y) < radius && !waves(x, y) }, sea},
		{"blocked", func(x, y float64) bool {
			return math.Hypot(x, y) < radius && !(math.Abs(y) < barHalf && math.Abs(x) < 0.29)
		}, color.NRGBA{0xe0, 0x4b, 0x36, 0xff}},
		{"gone", func(x, y float64) bool {
			d := (x + y) / math.Sqrt2
			if math.Abs(d) < line/2 && math.Hypot(x, y) < 0.5 {
				return true
			}
			return math.Abs(d) > line/2+slashGap && ring(x, y)
		}, grey},
	}
}

func ring(x, y float64) bool {
	r := math.Hypot(x, y)
	return r < radius && r > radius-line
}

// arc leaves three gaps in the ring.
func arc(x, y float64) bool {
	turn := math.Mod(math.Atan2(y, x)/(2*math.Pi)+1+0.25, 1) * 3
	return turn-math.Floor(turn) > 0.24
}

// waves are two sine lines with round ends, kept inside the ring.
func waves(x, y float64) bool {
	for _, mid := range []float64{-waveGap / 2, waveGap / 2} {
		crest := func(x float64) float64 { return mid - waveHigh*math.Sin(2*math.Pi*x/waveLong) }
		end := 0.30
		near := math.Max(-end, math.Min(end, x))
		best := math.Inf(1) // distance to the line: the nearest of the points around
		for px := math.Max(-end, near-waveLine); px <= math.Min(end, near+waveLine)+1e-9; px += 0.004 {
			best = math.Min(best, math.Hypot(px-x, crest(px)-y))
		}
		if best < waveLine/2 {
			return true
		}
	}
	return false
}

// draw renders a shape; shade gives the colour of a row (0 top, 1 bottom).
func draw(in shape, size int, shade func(float64) color.NRGBA) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	for py := range size {
		c := shade((float64(py) + 0.5) / float64(size))
		for px := range size {
			hits := 0
			for s := range supersize * supersize {
				x := (float64(px)+(float64(s%supersize)+0.5)/supersize)/float64(size) - 0.5
				y := (float64(py)+(float64(s/supersize)+0.5)/supersize)/float64(size) - 0.5
				if in(x, y) {
					hits++
				}
			}
			c.A = uint8(255 * hits / (supersize * supersize))
			img.SetNRGBA(px, py, c)
		}
	}
	return img
}

func flat(c color.NRGBA) func(float64) color.NRGBA {
	return func(float64) color.NRGBA { return c }
}

// deep shades from light to deep water.
func deep(t float64) color.NRGBA {
	mix := func(a, b uint8) uint8 { return uint8(float64(a)*(1-t) + float64(b)*t) }
	return color.NRGBA{mix(0x38, 0x0a), mix(0xb8, 0x5f), mix(0xf2, 0xb4), 0xff}
}

func encode(img image.Image) []byte {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		log.Fatal(err) // a bytes.Buffer takes everything
	}
	return b.Bytes()
}

// ico packs PNGs into a Windows icon file (all sizes up to 256).
func ico(images map[int][]byte, sizes []int) []byte {
	var head, body bytes.Buffer
	le := binary.LittleEndian
	head.Write(le.AppendUint16(le.AppendUint16(le.AppendUint16(nil, 0), 1), uint16(len(sizes))))
	offset := 6 + 16*len(sizes)
	for _, size := range sizes {
		data := images[size]
		side := byte(size) // 256 is written as 0
		entry := []byte{side, side, 0, 0}
		entry = le.AppendUint16(le.AppendUint16(entry, 1), 32)
		entry = le.AppendUint32(le.AppendUint32(entry, uint32(len(data))), uint32(offset+body.Len()))
		head.Write(entry)
		body.Write(data)
	}
	return append(head.Bytes(), body.Bytes()...)
}

func main() {
	out := flag.String("out", ".", "directory to write to")
	flag.Parse()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(*out, name), data, 0o644); err != nil {
			log.Fatal(err)
		}
	}
	for _, m := range marks() {
		variants := map[string]color.NRGBA{"color": m.color, "light": {0xf4, 0xf6, 0xf8, 0xff}, "dark": {0, 0, 0, 0xff}}
		for variant, c := range variants {
			for _, size := range []int{22, 24, 32, 48} {
				write(fmt.Sprintf("%s-%s-%d.png", m.name, variant, size), encode(draw(m.in, size, flat(c))))
			}
		}
		images := map[int][]byte{}
		sizes := []int{16, 20, 24, 32, 48}
		for _, size := range sizes {
			images[size] = encode(draw(m.in, size, flat(m.color)))
		}
		write(m.name+".ico", ico(images, sizes))
	}
	app := marks()[2].in
	images := map[int][]byte{}
	sizes := []int{16, 32, 48, 256}
	for _, size := range sizes {
		images[size] = encode(draw(app, size, deep))
	}
	write("app-color-48.png", images[48])
	write("app-color-256.png", images[256])
	write("app.ico", ico(images, sizes))
}
