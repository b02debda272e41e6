// Package hint has texts for people name the programs as this user can start
// them: hints are written with the bare names, but a program that was started
// as bin/atlantic is not on the PATH, and a service on a socket of its own is
// not the one that the bare command would reach.
//
//	run: sudo atlantic rescue ──► run: sudo bin/atlantic rescue
//	see: atlantic status      ──► see: bin/atlantic --socket /tmp/s status
//
// It imports nothing of ours; app/cli and app/atlanticd import it.
package hint

import (
	"path/filepath"
	"regexp"
	"strings"
)

// Programs says how to start atlantic and atlanticd.
type Programs struct {
	dir    string // with its slash; "" if they are on the PATH
	socket string // "" for the one that they find by themselves
}

// For returns how to start both programs, given how one of them was started
// (os.Args[0]) and the socket that it was told to use, if any.
func For(arg0, socket string) Programs {
	dir, _ := filepath.Split(arg0)
	return Programs{dir, socket}
}

// command is one of the programs with a verb of its own behind it, as prose
// and quoted commands have them. The second group is set if the verb talks to
// the service.
var command = regexp.MustCompile("(^|[\\s(`\"'])(?:atlantic(?:( (?:up|down|status|upstreams|use|session|flows|why|tray))|( (?:rescue|service|config|version|--help)))|atlanticd( (?:run|rescue)))\\b")

// In returns text with its commands as they can be run.
func (p Programs) In(text string) string {
	if p == (Programs{}) || !strings.Contains(text, "atlantic") {
		return text
	}
	return command.ReplaceAllStringFunc(text, func(match string) string {
		m := command.FindStringSubmatch(match)
		before, steers, other, daemon := m[1], m[2], m[3], m[4]
		switch {
		case daemon != "":
			return before + p.dir + "atlanticd" + daemon
		case steers != "" && p.socket != "":
			return before + p.dir + "atlantic --socket " + quote(p.socket) + steers
		}
		return before + p.dir + "atlantic" + steers + other
	})
}

// Atlantic is the command that steers the service.
func (p Programs) Atlantic() string {
	return strings.TrimSuffix(p.In("atlantic status"), " status")
}

// quote is a word as a shell takes it.
func quote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(`/._-\:`, r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
