package origin

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
)

// Stream is an endless, deterministic, incompressible run of bytes: word i is
// the i-th output of SplitMix64 (Steele et al., 2014) for the seed. It makes
// several gigabytes a second and is never stored.
type Stream struct {
	state uint64
	rest  []byte // unread bytes of the last word; points into word
	word  [8]byte
}

// NewStream starts at the first byte of the seed's stream.
func NewStream(seed uint64) *Stream { return &Stream{state: seed} }

// Read always fills p.
func (s *Stream) Read(p []byte) (int, error) {
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	for len(p)-n >= 8 {
		binary.LittleEndian.PutUint64(p[n:], s.next())
		n += 8
	}
	if n < len(p) {
		binary.LittleEndian.PutUint64(s.word[:], s.next())
		k := copy(p[n:], s.word[:])
		s.rest = s.word[k:]
	}
	return len(p), nil
}

func (s *Stream) next() uint64 {
	s.state += 0x9e3779b97f4a7c15
	z := s.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Bytes is the first n bytes of the seed's stream, as a reader.
func Bytes(n int64, seed uint64) io.Reader { return io.LimitReader(NewStream(seed), n) }

// Sum is the SHA-256, in hexadecimal, of the first n bytes of the seed's stream.
func Sum(n int64, seed uint64) string {
	h := sha256.New()
	buf := make([]byte, 64<<10)
	io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{Bytes(n, seed)}, buf)
	return hex.EncodeToString(h.Sum(nil))
}

// Check reads r to its end and reports the first difference from the first n
// bytes of the seed's stream.
func Check(r io.Reader, n int64, seed uint64) error {
	want, got, wanted := NewStream(seed), make([]byte, 64<<10), make([]byte, 64<<10)
	var at int64
	for {
		k, err := r.Read(got)
		want.Read(wanted[:k])
		if !bytes.Equal(got[:k], wanted[:k]) {
			for i := range k {
				if got[i] != wanted[i] {
					return fmt.Errorf("byte %d is %#02x, not %#02x", at+int64(i), got[i], wanted[i])
				}
			}
		}
		at += int64(k)
		switch {
		case err == io.EOF && at == n:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%d bytes, not %d: %w", at, n, io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("after %d of %d bytes: %w", at, n, err)
		case at > n:
			return fmt.Errorf("more than %d bytes", n)
		}
	}
}
