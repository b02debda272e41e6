package listener

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
)

const (
	// chunkBytes is what is copied of a body at a time.
	chunkBytes = 32 << 10
	// maxChunkLine bounds the line before a chunk, extensions included.
	maxChunkLine = 4 << 10
	// sizeBytes is the room for the line before a chunk of ours.
	sizeBytes = len("8000\r\n")
)

var errChunk = errors.New("malformed chunk")

// body reads the content of a message from r (RFC 9112 section 6.3). Read
// returns what has come, io.EOF at the end, and io.ErrUnexpectedEOF where the
// connection ends before the body does.
type body struct {
	r       *bufio.Reader
	chunked bool
	strict  bool  // an app's: where its chunks end is to be read in one way only
	left    int64 // of the body, or of the chunk; -1: until the connection ends
	begun   bool  // chunked: there was a chunk
	ended   bool
	trailer head // chunked, at the end: start is unused
}

// reset makes b the body that begins at r.
func (b *body) reset(r *bufio.Reader, chunked, strict bool, length int64) {
	*b = body{r: r, chunked: chunked, strict: strict, left: length, trailer: b.trailer}
	b.trailer.fields = b.trailer.fields[:0]
	if chunked {
		b.left = 0
	}
	b.ended = !chunked && length == 0
}

func (b *body) Read(p []byte) (int, error) {
	if b.chunked && b.left == 0 && !b.ended {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	if b.ended {
		return 0, io.EOF
	}
	if b.left >= 0 {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.r.Read(p)
	if b.left < 0 {
		return n, err // the end is the end
	}
	b.left -= int64(n)
	b.ended = b.left == 0 && !b.chunked
	if errors.Is(err, io.EOF) && (n == 0 || b.left > 0) {
		err = io.ErrUnexpectedEOF
	} else if n > 0 {
		err = nil
	}
	return n, err
}

// nextChunk reads to where a chunk's data begins, or to the end of the body.
func (b *body) nextChunk() error {
	if b.begun {
		line, err := b.line()
		if err != nil {
			return err
		}
		if len(line) > 0 {
			return errChunk
		}
	}
	line, err := b.line()
	if err != nil {
		return err
	}
	b.begun = true
	digits, extension, extended := bytes.Cut(line, []byte(";"))
	if !b.strict || extended { // space before an extension (RFC 9112 section 7.1.1), or anywhere in sloppy ones
		digits = bytes.TrimRight(digits, " \t")
	}
	size, err := strconv.ParseUint(string(digits), 16, 63)
	if err != nil || !isHex(digits) || b.strict && !clean(extension, true) {
		return errChunk
	}
	if size > 0 {
		b.left = int64(size)
		return nil
	}
	return b.readTrailer()
}

// isHex says whether b is digits only: ParseUint takes no sign, but underscores
// are not for it to judge.
func isHex(b []byte) bool {
	for _, c := range b {
		if !('0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f') {
			return false
		}
	}
	return len(b) > 0
}

// line reads one line of chunked coding, without its end. A server's may end
// with LF alone.
func (b *body) line() ([]byte, error) {
	line, err := b.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull) || len(line) > maxChunkLine:
		return nil, errChunk
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case b.strict && !bytes.HasSuffix(line, []byte("\r\n")):
		return nil, errChunk
	}
	return trimEnd(line), nil
}

// readTrailer reads what follows the last chunk. That a server closes instead
// of saying that it has ended takes nothing from the body.
func (b *body) readTrailer() error {
	b.trailer.raw = append(b.trailer.raw[:0], '\n') // an empty start line
	for {
		line, err := b.r.ReadSlice('\n')
		if len(b.trailer.raw)+len(line) > maxHeaderBytes || errors.Is(err, bufio.ErrBufferFull) {
			return errHeadTooLong
		}
		if err != nil && !b.strict && errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(trimEnd(line)) == 0 {
			break
		}
		b.trailer.raw = append(b.trailer.raw, line...)
	}
	b.ended = true
	err := b.trailer.parse(b.strict)
	b.trailer.scan() // framing and the like is not for trailers (RFC 9110 section 6.5.1)
	return err
}

// chunk is a buffer from which head, chunk size, data and line end leave in one
// write.
type chunk struct {
	b     [chunkBytes + 16<<10]byte
	begin int    // what is to be written begins here …
	end   int    // … and ends here
	more  []byte // what did not fit, in place of it all; nil if there is none
}

// put begins with a head; false if there is no room for it.
func (c *chunk) put(head []byte) bool {
	c.begin, c.end = 0, 0
	if len(head) > len(c.b)-chunkBytes-sizeBytes-len("\r\n") {
		return false
	}
	c.end = copy(c.b[:], head)
	return true
}

// fill reads once from r and adds what it got, as a chunk if chunked.
func (c *chunk) fill(r io.Reader, chunked bool) (int, error) {
	if !chunked {
		n, err := r.Read(c.b[c.end : c.end+chunkBytes])
		c.end += n
		return n, err
	}
	data := c.end + sizeBytes
	n, err := r.Read(c.b[data : data+chunkBytes])
	if n == 0 {
		return n, err
	}
	var line [sizeBytes]byte
	size := append(strconv.AppendUint(line[:0], uint64(n), 16), "\r\n"...)
	c.begin = sizeBytes - len(size) // what stands before is moved up to the size
	copy(c.b[c.begin:], c.b[:c.end])
	copy(c.b[c.begin+c.end:], size)
	c.end = data + n
	c.end += copy(c.b[c.end:], "\r\n")
	return n, err
}

// last adds the last chunk, with the trailer.
func (c *chunk) last(trailer *head) {
	b := append(c.b[c.begin:c.end], "0\r\n"...)
	b = append(trailer.appendFields(b), "\r\n"...)
	if c.end = c.begin + len(b); c.end > len(c.b) {
		c.more = b
	}
}

// flush writes what there is.
func (c *chunk) flush(w io.Writer) error {
	b := c.more
	if b == nil {
		b = c.b[c.begin:c.end]
	}
	c.begin, c.end, c.more = 0, 0, nil
	if len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}
