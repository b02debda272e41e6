// Package assets holds the files that the programs carry with them.
//
//	icons/gen ──go generate──► icons/*.png, *.ico ──embed──► Icon, ICO
//
// The icons are drawn by code, so that a change of the mark is a change of a
// few numbers. It imports nothing of ours; app/tray and the installers use it.
package assets

import (
	"embed"
	"fmt"
)

//go:generate go run ./icons/gen -out icons

//go:embed icons/*.png icons/*.ico
var icons embed.FS

// Icon returns a PNG. name is what it shows: off, connecting, on, blocked,
// gone (each distinct by shape) or app; variant is color, light (for dark
// panels), or dark (for light ones, and as a template on macOS); size is 22,
// 24, 32 or 48 pixels, and 256 for app. The error names the missing file.
func Icon(name, variant string, size int) ([]byte, error) {
	return icons.ReadFile(fmt.Sprintf("icons/%s-%s-%d.png", name, variant, size))
}

// ICO returns a Windows icon with images of 16 to 48 pixels (256 for app).
func ICO(name string) ([]byte, error) {
	return icons.ReadFile("icons/" + name + ".ico")
}
