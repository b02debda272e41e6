// Package assets holds the files that the programs carry with them.
//
//	icons/gen ──go generate──► icons/*.png, *.ico ──embed──► Icon, ICO
//
// The icons are drawn by code, so that a change of the mark is a change of a
// few numbers. providers/*.toml say how vendors of proxies want to be addressed
// (engine/resolve parses them): a new vendor is a new file. It imports nothing
// of ours; app/tray, the engine and the installers use it.
package assets

import (
	"embed"
	"fmt"
	"path"
	"strings"
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

//go:embed providers/*.toml
var providers embed.FS

// Provider returns the template of a provider: the text of providers/KIND.toml.
func Provider(kind string) ([]byte, error) {
	return providers.ReadFile("providers/" + kind + ".toml")
}

// Providers are the kinds that Provider knows, sorted.
func Providers() []string {
	entries, err := providers.ReadDir("providers")
	if err != nil {
		panic(err) // the directory is embedded
	}
	var kinds []string
	for _, e := range entries {
		kinds = append(kinds, strings.TrimSuffix(path.Base(e.Name()), ".toml"))
	}
	return kinds
}
