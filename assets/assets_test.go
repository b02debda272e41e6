package assets

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/png"
	"testing"
)

// states are what the tray shows.
func states() []string { return []string{"off", "connecting", "on", "blocked", "gone"} }

func TestIconSizes(t *testing.T) {
	for _, name := range states() {
		for _, variant := range []string{"color", "light", "dark"} {
			for _, size := range []int{22, 24, 32, 48} {
				data, err := Icon(name, variant, size)
				if err != nil {
					t.Fatal(err)
				}
				cfg, err := png.DecodeConfig(bytes.NewReader(data))
				if err != nil || cfg.Width != size || cfg.Height != size {
					t.Errorf("%s %s %d: %+v, %v", name, variant, size, cfg, err)
				}
			}
		}
	}
	if _, err := Icon("app", "color", 256); err != nil {
		t.Error(err)
	}
	if _, err := Icon("nothing", "color", 22); err == nil {
		t.Error("an icon that does not exist was found")
	}
}

// TestShapesDiffer: without colour and at 22 pixels, a good part of every two
// icons' pixels differ clearly.
func TestShapesDiffer(t *testing.T) {
	images := map[string]image.Image{}
	for _, name := range states() {
		data, err := Icon(name, "dark", 22)
		if err != nil {
			t.Fatal(err)
		}
		if images[name], err = png.Decode(bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range states() {
		for _, b := range states()[:i] {
			differ := 0
			for p := range 22 * 22 {
				_, _, _, aa := images[a].At(p%22, p/22).RGBA()
				_, _, _, ba := images[b].At(p%22, p/22).RGBA()
				if max(aa, ba)-min(aa, ba) > 0x8000 {
					differ++
				}
			}
			if differ < 22*22/20 {
				t.Errorf("%s and %s differ in %d of 484 pixels only", a, b, differ)
			}
		}
	}
}

func TestICO(t *testing.T) {
	for _, name := range append(states(), "app") {
		data, err := ICO(name)
		if err != nil {
			t.Fatal(err)
		}
		n := int(binary.LittleEndian.Uint16(data[4:]))
		for i := range n {
			entry := data[6+16*i:]
			size, offset := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
			cfg, err := png.DecodeConfig(bytes.NewReader(data[offset : offset+size]))
			if err != nil || byte(cfg.Width) != entry[0] {
				t.Errorf("%s: image %d: %+v, %v", name, i, cfg, err)
			}
		}
		if n < 4 {
			t.Errorf("%s holds %d images", name, n)
		}
	}
}
