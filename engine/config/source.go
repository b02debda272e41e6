package config

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/atlanticproxy/atlanticproxy/engine/proxy"
)

// maxDepth bounds nested arrays and inline tables; the schema needs two.
const maxDepth = 16

// source is the text of a file and where its keys stand in it. Paths are like
// "tun.mtu", "upstream[0].url", "rule[2].cidr[1]".
type source struct {
	name  string
	data  []byte
	lines []int           // offsets of line starts
	keys  map[string]span // keys, table headers, elements of arrays
	ends  map[string]int  // by table path: offset behind its last line
}

// span is a key's place and, for key = value, the value's.
type span struct{ start, valueStart, valueEnd int }

func newSource(name string, data []byte) *source {
	s := &source{name: name, data: data, keys: map[string]span{}, ends: map[string]int{}, lines: []int{0}}
	for i, c := range data {
		if c == '\n' {
			s.lines = append(s.lines, i+1)
		}
	}
	return s
}

// index notes the places of all keys and refuses the first that is unknown
// (the decoder would gather all of them, in quadratic time: 60,000 took two
// minutes with go-toml 2.4.3). It stops quietly where the syntax is wrong,
// which the decoder reports.
func (s *source) index() error {
	var p unstable.Parser
	p.Reset(s.data)
	table, counts := "", map[string]int{}
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, start, end := keyOf(e)
			if e.Kind == unstable.ArrayTable {
				counts[path]++
				path = fmt.Sprintf("%s[%d]", path, counts[path]-1)
			}
			table = path
			if err := s.checkKnown(path, start); err != nil {
				return err
			}
			if _, twice := s.keys[path]; twice {
				return s.failAt(start, "["+path+"] stands there twice", "give each table once")
			}
			s.keys[path] = span{start: start}
			s.ends[path] = s.lineEnd(end)
		case unstable.KeyValue:
			end, err := s.keyValue(table, e)
			if err != nil {
				return err
			}
			s.ends[table] = s.lineEnd(end)
		}
	}
	return nil
}

// checkKnown looks a path up in the schema.
func (s *source) checkKnown(path string, start int) error {
	parts := strings.Split(path, ".")
	for i, p := range parts {
		if j := strings.IndexByte(p, '['); j > 0 {
			parts[i] = p[:j]
		}
	}
	keys := schema(parts[0])
	if parts[0] == "" || keys == nil || len(parts) > 1 && !slices.Contains(keys, parts[1]) {
		msg, hint := unknownKey(parts)
		return s.failAt(start, msg, hint)
	}
	return nil
}

// keyValue notes key = value and what is inside value; it returns the offset
// behind it.
func (s *source) keyValue(table string, e *unstable.Node) (int, error) {
	path, start, end := keyOf(e)
	if table != "" {
		path = table + "." + path
	}
	if err := s.checkKnown(path, start); err != nil {
		return 0, err
	}
	if _, twice := s.keys[path]; twice {
		return 0, s.failAt(start, path+" stands there twice", "give each key once")
	}
	for end < len(s.data) && s.data[end] != '=' {
		end++
	}
	end++
	for end < len(s.data) && (s.data[end] == ' ' || s.data[end] == '\t') {
		end++
	}
	if section, _, dotted := strings.Cut(path, "."); dotted && table == "" && s.keys[section] == (span{}) {
		s.keys[section] = span{start: start} // so that no header may follow
	}
	sp := span{start: start, valueStart: end, valueEnd: valueEnd(s.data, min(end, len(s.data)))}
	s.keys[path] = sp
	return sp.valueEnd, s.inside(path, e.Value())
}

func (s *source) inside(path string, v *unstable.Node) error {
	if v.Kind != unstable.Array && v.Kind != unstable.InlineTable {
		return nil
	}
	children := v.Children()
	for i := 0; children.Next(); i++ {
		n := children.Node()
		if v.Kind == unstable.InlineTable {
			if _, err := s.keyValue(path, n); err != nil {
				return err
			}
			continue
		}
		element := fmt.Sprintf("%s[%d]", path, i)
		if n.Raw.Length > 0 {
			s.keys[element] = span{start: int(n.Raw.Offset)}
		}
		if err := s.inside(element, n); err != nil {
			return err
		}
	}
	return nil
}

// keyOf joins a dotted key, and tells where it starts and ends.
func keyOf(e *unstable.Node) (path string, start, end int) {
	var parts []string
	start = -1
	for it := e.Key(); it.Next(); {
		n := it.Node()
		parts = append(parts, string(n.Data))
		if start < 0 {
			start = int(n.Raw.Offset)
		}
		end = int(n.Raw.Offset + n.Raw.Length)
	}
	return strings.Join(parts, "."), max(start, 0), end
}

// lineEnd returns the offset behind the line that holds off.
func (s *source) lineEnd(off int) int {
	i := sort.SearchInts(s.lines, off+1)
	if i == len(s.lines) {
		return len(s.data)
	}
	return s.lines[i]
}

// fail makes the Error for the place of path, or of what encloses it.
func (s *source) fail(path, hint, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	for {
		if sp, ok := s.keys[path]; ok {
			return s.failAt(sp.start, msg, hint)
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return &Error{File: s.name, Msg: msg, Hint: hint}
		}
		path = path[:i]
	}
}

// wrong is fail for what is wrong with the value of path, by err and its hint.
func (s *source) wrong(path, what, hint string, err error) error {
	var pe *proxy.Error
	if errors.As(err, &pe) && pe.Hint != "" {
		hint = pe.Hint
	}
	return s.fail(path, hint, "%s: %v", what, err)
}

func (s *source) failAt(off int, msg, hint string) error {
	line := sort.SearchInts(s.lines, off+1) // from 1
	start := s.lines[line-1]
	return s.failLine(line, off-start+1, msg, hint)
}

func (s *source) failLine(line, column int, msg, hint string) *Error {
	e := &Error{File: s.name, Line: line, Column: column, Msg: msg, Hint: hint}
	if line >= 1 && line <= len(s.lines) {
		start, end := s.lines[line-1], len(s.data)
		if line < len(s.lines) {
			end = s.lines[line] - 1
		}
		e.Text = shown(string(s.data[start:end]))
	}
	return e
}

// checkDepth refuses nesting that would cost the decoder its stack.
func (s *source) checkDepth() error {
	depth := 0
	for i := 0; i < len(s.data); i++ {
		switch s.data[i] {
		case '"', '\'':
			i = skipString(s.data, i) - 1
		case '#':
			i = skipLine(s.data, i)
		case '[', '{':
			if depth++; depth > maxDepth {
				return s.failAt(i, "too deeply nested", "no key needs more than an array of tables")
			}
		case ']', '}':
			depth = max(depth-1, 0)
		}
	}
	// a.b.c…: each part is a nested table.
	for n, start := range s.lines {
		end := len(s.data)
		if n+1 < len(s.lines) {
			end = s.lines[n+1]
		}
		dots := 0
		for _, c := range s.data[start:end] {
			if c == '=' || c == '#' || c == '"' || c == '\'' {
				break
			}
			if c == '.' {
				dots++
			}
		}
		if dots > maxDepth {
			return s.failAt(start, "too deeply nested", "no key has more than two parts")
		}
	}
	return nil
}

// valueEnd returns the offset behind the TOML value that starts at i.
func valueEnd(data []byte, i int) int {
	depth, end := 0, i
	for i < len(data) {
		switch c := data[i]; c {
		case '"', '\'':
			i = skipString(data, i)
			end = i
			continue
		case '#':
			if depth == 0 {
				return end
			}
			i = skipLine(data, i)
		case '\n':
			if depth == 0 {
				return end
			}
		case '[', '{':
			depth++
		case ']', '}', ',':
			if depth == 0 {
				return end
			}
			if c != ',' {
				depth--
			}
			end = i + 1
		case ' ', '\t', '\r':
		default:
			end = i + 1
		}
		i++
	}
	return end
}

// skipString returns the offset behind the string that starts at i.
func skipString(data []byte, i int) int {
	q := data[i]
	if i+2 < len(data) && data[i+1] == q && data[i+2] == q {
		for i += 3; i+2 < len(data); i++ {
			if data[i] == '\\' && q == '"' {
				i++
			} else if data[i] == q && data[i+1] == q && data[i+2] == q {
				for i += 3; i < len(data) && data[i] == q; i++ { // up to two more belong to it
				}
				return i
			}
		}
		return len(data)
	}
	for i++; i < len(data) && data[i] != '\n'; i++ {
		if data[i] == '\\' && q == '"' {
			i++
		} else if data[i] == q {
			return i + 1
		}
	}
	return min(i, len(data))
}

// skipLine returns the offset of the newline that ends the comment at i.
func skipLine(data []byte, i int) int {
	for i < len(data) && data[i] != '\n' {
		i++
	}
	return i
}
