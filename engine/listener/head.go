package listener

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"unsafe"
)

// head is the head of an HTTP/1 message (RFC 9112 section 2.1): a start line
// and fields. Its slices lead into raw and are valid until the next read.
type head struct {
	raw    []byte // as it came
	start  []byte // the start line, without its end
	fields []field
}

type field struct {
	name, value []byte
	hop         bool // for the next hop only, or written anew: it does not pass
}

// size is the bytes of memory that h holds.
func (h *head) size() int { return cap(h.raw) + cap(h.fields)*int(unsafe.Sizeof(field{})) }

var (
	errHeadTooLong = errors.New("the head is too long")
	errField       = errors.New("malformed header field")
)

// read reads a head of most bytes at most, and the empty lines before it
// (RFC 9112 section 2.2). The error is io.EOF if nothing has come.
func (h *head) read(r *bufio.Reader, most int) error {
	h.raw = h.raw[:0]
	for begin, skipped := 0, 0; ; {
		line, err := r.ReadSlice('\n')
		if h.raw = append(h.raw, line...); len(h.raw)+skipped > most {
			return errHeadTooLong
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(h.raw) > 0:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
		empty := len(trimEnd(h.raw[begin:])) == 0
		switch {
		case empty && begin > 0:
			h.raw = h.raw[:begin]
			return nil
		case empty:
			skipped += len(h.raw)
			h.raw = h.raw[:0]
		}
		begin = len(h.raw)
	}
}

// trimEnd removes a line's end. LF alone is one too (RFC 9112 section 2.2): what
// is passed on has CRLF, so that nobody after us reads other lines than we did.
func trimEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
}

// parse finds the fields in raw. An app's head must be valid; of a server's that
// is not, what cannot be understood in only one way is left out or blanked
// (RFC 9110 section 5.5, RFC 9112 sections 5.1 and 5.2).
func (h *head) parse(strict bool) error {
	h.fields = h.fields[:0]
	value, end := -1, 0 // where the last field's value begins, -1 if it was left out
	for at := 0; at < len(h.raw); at = end {
		end = at + bytes.IndexByte(h.raw[at:], '\n') + 1
		line := trimEnd(h.raw[at:end])
		if at == 0 {
			h.start = line
			continue
		}
		if line[0] == ' ' || line[0] == '\t' { // folded onto the line before
			if strict {
				return errField
			}
			if value < 0 {
				continue
			}
			clean(line, false)
			h.raw[at-1] = ' '
			if h.raw[at-2] == '\r' {
				h.raw[at-2] = ' '
			}
			h.fields[len(h.fields)-1].value = h.raw[value : at+len(line)]
			continue
		}
		value = -1
		colon := bytes.IndexByte(line, ':')
		name := line[:max(colon, 0)]
		if !strict {
			name = bytes.TrimRight(name, " \t")
		}
		if !isToken(name) || !clean(line[colon+1:], strict) {
			if strict {
				return errField
			}
			continue
		}
		value = at + colon + 1
		h.fields = append(h.fields, field{name: name, value: line[colon+1:]})
	}
	for i := range h.fields { // once: with each fold of thousands it would take seconds
		h.fields[i].value = bytes.Trim(h.fields[i].value, " \t")
	}
	return nil
}

// clean says whether a field's value is valid; if not strict it is made so.
func clean(value []byte, strict bool) bool {
	for i, c := range value {
		switch {
		case c >= ' ' && c != 0x7f || c == '\t':
		case strict:
			return false
		default: // CR and NUL must be, and some clients refuse a head with others
			value[i] = ' '
		}
	}
	return true
}

// isToken says whether b is a token (RFC 9110 section 5.6.2).
func isToken(b []byte) bool {
	for _, c := range b {
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0) {
			return false
		}
	}
	return len(b) > 0
}

// is compares without regard to case; lower is ASCII in lower case.
func is(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// elements calls f with each element of a list (RFC 9110 section 5.6.1).
func elements(value []byte, f func([]byte)) {
	for e := range bytes.SplitSeq(value, []byte(",")) {
		if e = bytes.Trim(e, " \t"); len(e) > 0 {
			f(e)
		}
	}
}

// meaning is what the fields say to those who pass a message on.
type meaning struct {
	close, keepAlive bool // Connection
	websocket        bool // Connection and Upgrade ask for, or agree to, a WebSocket: the only upgrade that passes (RFC 6455 section 4)
	trailers         bool // TE
	hosts            int  // how many Host fields there are
	binds            bool // it logs in to the connection, or is asked to; see auth.go

	length  int64  // Content-Length, -1 if there is none
	lengths bool   // Content-Length is no number, or several
	empty   bool   // Content-Length says nothing
	chunked bool   // the last transfer coding is chunked
	codings []byte // the other ones, as a list
	coded   bool   // there is a Transfer-Encoding
	odd     bool   // and it is another than "chunked"
}

// scan finds what the fields mean, and marks those that do not pass (RFC 9110
// section 7.6.1).
func (h *head) scan() meaning {
	m := meaning{length: -1}
	var options map[string]bool // a set: a hostile head names thousands, of thousands of fields
	upgrades, upgrade := 0, false
	for i := range h.fields {
		f := &h.fields[i]
		var lower [24]byte
		switch string(appendLower(lower[:0], f.name)) {
		case "connection", "proxy-connection":
			f.hop = true
			elements(f.value, func(e []byte) {
				switch {
				case is(e, "close"):
					m.close = true
				case is(e, "keep-alive"):
					m.keepAlive = true
				case is(e, "upgrade"):
					upgrade = true
				default:
					if options == nil {
						options = make(map[string]bool)
					}
					options[strings.ToLower(string(e))] = true
				}
			})
		case "keep-alive", "proxy-authorization":
			f.hop = true
		case "proxy-authenticate":
			f.hop = true
			m.binds = m.binds || offersBinding(f.value)
		case "www-authenticate":
			m.binds = m.binds || offersBinding(f.value)
		case "authorization":
			m.binds = m.binds || isBinding(scheme(f.value))
		case "te":
			f.hop = true
			elements(f.value, func(e []byte) { m.trailers = m.trailers || is(e, "trailers") })
		case "upgrade":
			f.hop = true
			upgrades++
			m.websocket = is(f.value, "websocket")
		case "host":
			f.hop = true
			m.hosts++
		case "content-length":
			f.hop = true
			m.addLength(f.value)
		case "transfer-encoding":
			f.hop = true
			m.addCodings(f.value)
		}
	}
	m.websocket = m.websocket && upgrade && upgrades == 1
	if options != nil {
		for i := range h.fields {
			f := &h.fields[i]
			f.hop = f.hop || options[strings.ToLower(string(f.name))]
		}
	}
	return m
}

// appendLower is name in lower case, "" if it is longer than any of interest.
func appendLower(b, name []byte) []byte {
	if len(name) > cap(b) {
		return b
	}
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return b
}

// addLength takes a Content-Length. A list of equal numbers is that number
// (RFC 9110 section 8.6).
func (m *meaning) addLength(value []byte) {
	if len(value) == 0 {
		m.empty = true
		return
	}
	for e := range bytes.SplitSeq(value, []byte(",")) {
		e = bytes.Trim(e, " \t")
		n, err := strconv.ParseUint(string(e), 10, 63)
		if err != nil || m.length >= 0 && m.length != int64(n) {
			m.lengths = true
			continue
		}
		m.length = int64(n)
	}
}

// addCodings takes a Transfer-Encoding. To servers that know no better "identity"
// is none, and chunked twice is chunked.
func (m *meaning) addCodings(value []byte) {
	m.odd = m.odd || m.coded || !is(value, "chunked")
	m.coded = true
	elements(value, func(e []byte) {
		switch {
		case is(e, "identity"):
		case is(e, "chunked"):
			m.chunked = true
		default:
			if len(m.codings) > 0 {
				m.codings = append(m.codings, ", "...)
			}
			if m.chunked { // and not the last one: the end of the connection ends it
				m.codings, m.chunked = append(m.codings, "chunked, "...), false
			}
			m.codings = append(m.codings, e...)
		}
	})
}

// appendFields appends the fields that pass.
func (h *head) appendFields(b []byte) []byte {
	for i := range h.fields {
		if f := &h.fields[i]; !f.hop {
			b = append(append(append(b, f.name...), ": "...), f.value...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}
