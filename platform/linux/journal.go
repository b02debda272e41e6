//go:build linux

package linux

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	journalName    = "journal"
	journalVersion = 1
	maxJournal     = 16 << 20 // bytes; a longer file is not ours
	compactAfter   = 1000     // records written before the file is rewritten
	bootIDPath     = "/proc/sys/kernel/random/boot_id"
)

// errJournal is a journal that cannot be trusted. Rescue still undoes what can
// be read of it, and everything that the naming scheme finds.
var errJournal = errors.New("the journal cannot be used")

// journal is the append-only list of changes in force. One line is a record:
// the CRC-32 (IEEE) of the JSON in eight hex digits, a space, the JSON.
//
//	header {"version":1,"boot":"…"}
//	made   {"seq":7,"op":{…}}      on disk before the change is made
//	undone {"seq":7,"undone":true} written after it was undone
//
// An incomplete last line is a record whose change was never made, since the
// write is synced first; anything else that does not parse is damage.
// Not safe for concurrent use: the host's mutex guards it.
type journal struct {
	dir     string
	file    *os.File // nil while nothing is in force
	seq     int
	written int
	pending []entry // in force, oldest first
}

type entry struct {
	Seq    int  `json:"seq"`
	Op     *op  `json:"op,omitempty"`
	Undone bool `json:"undone,omitempty"`
}

type journalHeader struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`
}

// openJournal reads what an earlier run left in dir. The entries that it could
// read are in pending even when the error is errJournal.
func openJournal(dir string) (*journal, error) {
	j := &journal{dir: dir}
	data, err := readOwn(filepath.Join(dir, journalName))
	if err != nil || len(data) == 0 {
		return j, err
	}
	header, entries, err := parseJournal(data)
	j.pending = entries
	if n := len(entries); n > 0 {
		j.seq = entries[n-1].Seq
	}
	if err != nil {
		return j, fmt.Errorf("read %s: %w", filepath.Join(dir, journalName), err)
	}
	if header.Boot != bootID() { // the kernel's objects went with that boot
		j.pending = slices.DeleteFunc(j.pending, func(e entry) bool { return !e.Op.survivesReboot() })
	}
	return j, nil
}

// readOwn reads a regular file that belongs to us alone; a missing one is empty.
func readOwn(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", errJournal, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%w: %s is not a regular file", errJournal, path)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("%w: %s belongs to user %d", errJournal, path, st.Uid)
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("%w: others may write %s", errJournal, path)
	case st.Size > maxJournal:
		return nil, fmt.Errorf("%w: %s is too long (%d bytes)", errJournal, path, st.Size)
	}
	data := make([]byte, st.Size)
	n, err := f.ReadAt(data, 0)
	if n < len(data) && err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// parseJournal returns the entries in force. On damage it returns all that can
// still be read, behind it too, with an error.
func parseJournal(data []byte) (h journalHeader, entries []entry, err error) {
	for number := 1; len(data) > 0; number++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			return h, entries, err // cut while it was written
		}
		data = rest
		body, ok := checkLine(line)
		if !ok {
			if len(data) > 0 && err == nil {
				err = fmt.Errorf("%w: line %d is damaged", errJournal, number)
			}
			continue
		}
		if number == 1 {
			if err := json.Unmarshal(body, &h); err != nil || h.Version != journalVersion {
				return h, nil, fmt.Errorf("%w: version %d, this program writes version %d", errJournal, h.Version, journalVersion)
			}
			continue
		}
		var e entry
		if json.Unmarshal(body, &e) != nil || (e.Op == nil && !e.Undone) {
			if err == nil {
				err = fmt.Errorf("%w: line %d is not a record", errJournal, number)
			}
			continue
		}
		if e.Undone {
			entries = slices.DeleteFunc(entries, func(o entry) bool { return o.Seq == e.Seq })
		} else {
			entries = append(entries, e)
		}
	}
	return h, entries, err
}

func checkLine(line []byte) (body []byte, ok bool) {
	sum, body, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(sum) != 8 {
		return nil, false
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	return body, err == nil && uint32(want) == crc32.ChecksumIEEE(body)
}

func formatLine(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(body), body), nil
}

// add records that ops are about to be made, in that order, and returns once
// that is on disk.
func (j *journal) add(ops ...op) ([]entry, error) {
	if j.file == nil || j.written >= compactAfter {
		if err := j.rewrite(); err != nil {
			return nil, err
		}
	}
	var entries []entry
	for _, o := range ops {
		j.seq++
		e := entry{Seq: j.seq, Op: &o}
		if err := j.write(e); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	if err := j.file.Sync(); err != nil {
		j.close()
		return nil, fmt.Errorf("sync the journal: %w", err)
	}
	j.pending = append(j.pending, entries...)
	return entries, nil
}

// undone records that the change seq is no more. It is not synced, and an error
// changes nothing for the caller: undoing twice is harmless.
func (j *journal) undone(seq int) error {
	j.pending = slices.DeleteFunc(j.pending, func(e entry) bool { return e.Seq == seq })
	if len(j.pending) == 0 {
		return j.clear()
	}
	if j.file == nil { // from an earlier run and not yet opened, or closed by a failed write
		return j.rewrite()
	}
	return j.write(entry{Seq: seq, Undone: true})
}

// clear removes the file: nothing is in force.
func (j *journal) clear() error {
	j.close()
	j.pending = nil
	if err := os.Remove(filepath.Join(j.dir, journalName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the journal: %w", err)
	}
	return nil
}

// keep makes rest all that is in force. A damaged file stays under another name.
func (j *journal) keep(rest []entry, damaged bool) error {
	j.close()
	j.pending = rest
	path := filepath.Join(j.dir, journalName)
	if damaged {
		if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("put the journal aside: %w", err)
		}
	}
	if len(rest) == 0 {
		return j.clear()
	}
	return j.rewrite()
}

func (j *journal) close() {
	if j.file != nil {
		_ = j.file.Close()
		j.file = nil
	}
}

// write appends one record. After a failure the file may end in half a line; it
// is closed, so that whatever comes next rewrites it.
func (j *journal) write(v any) error {
	line, err := formatLine(v)
	if err != nil {
		return fmt.Errorf("encode a journal record: %w", err)
	}
	if _, err := j.file.Write(line); err != nil {
		j.close()
		return fmt.Errorf("write the journal: %w", err)
	}
	j.written++
	return nil
}

// rewrite replaces the file by one that holds just what is in force.
func (j *journal) rewrite() error {
	j.close()
	path := filepath.Join(j.dir, journalName)
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("rewrite the journal: %w", err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("rewrite the journal: %w", err)
	}
	j.file, j.written = f, 0
	err = j.write(journalHeader{Version: journalVersion, Boot: bootID()})
	for _, e := range j.pending {
		if err == nil {
			err = j.write(e)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		j.close()
		return fmt.Errorf("rewrite the journal: %w", err)
	}
	j.written = 0
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func bootID() string {
	b, _ := os.ReadFile(bootIDPath)
	return strings.TrimSpace(string(b))
}
