// Package service holds the one systemd unit of the service: the packages
// install it as it is, `atlantic service install` with another program in it.
package service

import (
	_ "embed"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

//go:embed atlanticd.service
var unit string

// packaged is how the unit names the program that the packages install.
const packaged = "ExecStart=/usr/bin/atlanticd "

// Unit returns the unit that runs the program at an absolute path. systemd
// starts no program whose path has quotes, backslashes or control characters
// in it; such a path is an error.
func Unit(program string) (string, error) {
	odd := func(r rune) bool { return r == '"' || r == '\'' || r == '\\' || unicode.IsControl(r) }
	if i := strings.IndexFunc(program, odd); i >= 0 {
		r, _ := utf8.DecodeRuneInString(program[i:])
		return "", fmt.Errorf("systemd starts no program with %q in its path: %q", r, program)
	}
	return strings.Replace(unit, packaged, "ExecStart="+quote.Replace(program)+" ", 1), nil
}

// quote has systemd take a path as one word, without a specifier (%) in it
// (systemd.unit(5)), and the library that writes the unit without one of its
// own actions ({{).
var quote = strings.NewReplacer("%", "%%", "{", `\x7b`, " ", `\x20`)
