package resolve

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of a grammar: far above what any vendor has.
const (
	maxGrammarBytes = 512
	maxGrammarDepth = 4
)

// grammar is a user name or password with places to fill in:
//
//	customer-{user}[-cc-{country}[-city-{city}]][-sessid-{session}]
//
// A part in brackets is written if every place directly in it has a value.
type grammar []part

// part is exactly one of: text, a place, an optional part.
type part struct {
	text  string
	place string
	opt   grammar
}

func parseGrammar(s string) (grammar, error) {
	if len(s) > maxGrammarBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxGrammarBytes)
	}
	g, rest, err := parseParts(s, 0)
	if err == nil && rest != "" {
		err = errors.New("] without [")
	}
	return g, err
}

// parseParts reads up to the end or to a closing bracket, which it leaves.
func parseParts(s string, depth int) (g grammar, rest string, err error) {
	for s != "" && s[0] != ']' {
		switch s[0] {
		case '{':
			name, after, ok := strings.Cut(s[1:], "}")
			if !ok || !isPlace(name) {
				return nil, "", errors.New("{ must be followed by a name of small letters and }")
			}
			g, s = append(g, part{place: name}), after
		case '[':
			if depth == maxGrammarDepth {
				return nil, "", errors.New("brackets too deep")
			}
			opt, after, err := parseParts(s[1:], depth+1)
			if err != nil {
				return nil, "", err
			}
			if !strings.HasPrefix(after, "]") {
				return nil, "", errors.New("[ without ]")
			}
			if !opt.hasPlace() {
				return nil, "", errors.New("brackets without a place in them: it could never be left out")
			}
			g, s = append(g, part{opt: opt}), after[1:]
		case '}':
			return nil, "", errors.New("} without {")
		default:
			n := strings.IndexAny(s, "[]{}")
			if n < 0 {
				n = len(s)
			}
			g, s = append(g, part{text: s[:n]}), s[n:]
		}
	}
	if depth == 0 || s != "" {
		return g, s, nil
	}
	return nil, "", errors.New("[ without ]")
}

func isPlace(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == ""
}

func (g grammar) hasPlace() bool {
	for _, p := range g {
		if p.place != "" {
			return true
		}
	}
	return false
}

// each calls f for every place, and says whether it may stay empty.
func (g grammar) each(f func(place string, optional bool)) { g.walk(false, f) }

func (g grammar) walk(optional bool, f func(string, bool)) {
	for _, p := range g {
		if p.place != "" {
			f(p.place, optional)
		}
		p.opt.walk(true, f)
	}
}

// fill writes the grammar with the values that of gives.
func (g grammar) fill(of func(place string) string) string {
	var b strings.Builder
	g.write(&b, of)
	return b.String()
}

func (g grammar) write(b *strings.Builder, of func(string) string) {
	for _, p := range g {
		switch {
		case p.place != "":
			b.WriteString(of(p.place))
		case p.opt != nil:
			if p.opt.complete(of) {
				p.opt.write(b, of)
			}
		default:
			b.WriteString(p.text)
		}
	}
}

func (g grammar) complete(of func(string) string) bool {
	for _, p := range g {
		if p.place != "" && of(p.place) == "" {
			return false
		}
	}
	return true
}
