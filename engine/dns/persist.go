package dns

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// maxFileBytes bounds the saved mapping: maxNames of the longest names.
const maxFileBytes = maxNames * 270

// The file is text, least recently used name first:
//
//	atlantic-dns 1 198.18.0.0/15 fd61:746c:616e:7469::/64 <next>
//	<slot> <name>
//	end <number of names> <CRC-32 of all before>

func (s *Server) fileHead() string {
	return fmt.Sprintf("atlantic-dns 1 %s %s", s.fake.p4, s.fake.p6)
}

// Save writes the mapping to Options.File at once: the old file or the new,
// whole, whatever happens meanwhile. It does nothing without a file.
func (s *Server) Save() error {
	if s.opt.File == "" || s.opt.Mode != FakeIP {
		return nil
	}
	s.saveMu.Lock()
	defer s.saveMu.Unlock()
	if err := writeFile(s.opt.File, s.snapshot()); err != nil {
		return fmt.Errorf("save names: %w", err)
	}
	return nil
}

func (s *Server) snapshot() []byte {
	m := s.fake
	m.mu.Lock()
	defer m.mu.Unlock()
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %d\n", s.fileHead(), m.next)
	for e := m.lru.Front(); e != nil; e = e.Next() {
		b.WriteString(strconv.FormatUint(uint64(e.Value.(*fakeEntry).slot), 10))
		b.WriteByte(' ')
		b.WriteString(e.Value.(*fakeEntry).name)
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "end %d %08x\n", m.lru.Len(), crc32.ChecksumIEEE(b.Bytes()))
	return b.Bytes()
}

func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// load reads the mapping. A missing file and one for other ranges are an empty
// mapping; anything that is wrong is an error, and then nothing is taken.
func (s *Server) load() error {
	f, err := os.Open(s.opt.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return err
	}
	entries, next, err := parseFile(data, s.fileHead(), s.fake.size)
	if err != nil {
		return err
	}
	var used time.Time // when the file was saved, so that a full map can be reused soon
	if info, err := f.Stat(); err == nil {
		used = info.ModTime()
	}
	m := s.fake
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range entries {
		if Loopback(e.name) || Nowhere(e.name) || Local(e.name) {
			continue // an older version faked it
		}
		e.used = used
		m.put(e)
	}
	m.next = (next + crashGap) % uint32(m.size)
	return nil
}

// parseFile reads the format above, of a hostile or damaged file too.
func parseFile(data []byte, head string, size int) (entries []*fakeEntry, next uint32, err error) {
	if len(data) > maxFileBytes {
		return nil, 0, errors.New("too large")
	}
	end := bytes.LastIndex(data, []byte("\nend ")) + 1
	var count int
	var sum uint32
	if n, err := fmt.Sscanf(string(data[end:]), "end %d %x\n", &count, &sum); end == 0 || n != 2 || err != nil {
		return nil, 0, errors.New("the end is missing")
	}
	if crc32.ChecksumIEEE(data[:end]) != sum {
		return nil, 0, errors.New("the checksum is wrong")
	}
	lines := bufio.NewScanner(bytes.NewReader(data[:end]))
	lines.Scan()
	nextText, ok := strings.CutPrefix(lines.Text(), head+" ")
	if !ok {
		return nil, 0, errors.New("it is for other ranges of addresses, or of another version")
	}
	n, err := strconv.ParseUint(nextText, 10, 32)
	if err != nil {
		return nil, 0, errors.New("the first line is damaged")
	}
	names, slots := map[string]bool{}, map[uint64]bool{}
	for lines.Scan() {
		slotText, name, _ := strings.Cut(lines.Text(), " ")
		slot, err := strconv.ParseUint(slotText, 10, 32)
		if err != nil || slot >= uint64(size) || slots[slot] || names[name] || !isHostName(name) {
			return nil, 0, fmt.Errorf("line %d is damaged", len(entries)+2)
		}
		names[name], slots[slot] = true, true
		entries = append(entries, &fakeEntry{name: name, slot: uint32(slot)})
	}
	if err := lines.Err(); err != nil || len(entries) != count || count > size {
		return nil, 0, errors.New("the number of names is wrong")
	}
	return entries, uint32(n), nil
}
